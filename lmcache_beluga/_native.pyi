"""The core of lmcache-beluga. Use lmcache_beluga.Pool."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy
from numpy.typing import NDArray


def encode_keys(keys: Sequence[object]) -> list[bytes]:
    """
    The record of each key: see lmcache_beluga.keys. Raises InvalidArgumentError for what is no key.
    """

def fingerprints(keys: Sequence[object]) -> list[int]:
    """
    The 128-bit fingerprint (XXH3) of each key's record. Raises InvalidArgumentError for what is no key.
    """

class View:
    """A leased, read-only view of one chunk."""

    @property
    def size(self) -> int: ...

    @property
    def address(self) -> int: ...

    @property
    def slot(self) -> int: ...

    @property
    def generation(self) -> int: ...

    @property
    def released(self) -> bool: ...

    @property
    def record(self) -> bytes: ...

    @property
    def meta(self) -> bytes: ...

    def valid(self) -> bool: ...

    def release(self) -> None: ...

    def array(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), writable=False)]: ...

class Reservation:
    """A slot to write into."""

    @property
    def size(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def slot(self) -> int: ...

    @property
    def address(self) -> int: ...

    @property
    def done(self) -> bool: ...

    def commit(self, key: object, meta: bytes, depth: int, size: object | None, keep: bool) -> tuple[int, View | None]: ...

    def abort(self) -> None: ...

    def array(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

def format(path: object, size: int, options: dict[str, Any]) -> None: ...

def geometry(path: object) -> dict[str, Any]: ...

def hosts(path: object, watch_ms: int) -> list[dict[str, Any]]: ...

def attach(path: object, options: dict[str, Any]) -> Pool: ...

def open(path: object, size: int, format: dict[str, Any], options: dict[str, Any]) -> Pool: ...

def copy_bandwidth(target: object, source: object, to_pool: bool, threads: int) -> float:
    """Bytes per second of one copy by the streaming engine."""

class Pool:
    """One process's handle on one pool."""

    @property
    def geometry(self) -> dict[str, Any]: ...

    @property
    def host_id(self) -> int: ...

    @property
    def closed(self) -> bool: ...

    @property
    def close_reason(self) -> str: ...

    @property
    def copy_threads(self) -> int: ...

    def check_open(self) -> None: ...

    def close(self) -> None: ...

    def contains(self, keys: object) -> list[bool]: ...

    def contains_prefix(self, keys: object) -> int: ...

    def is_duplicate(self, key: object) -> bool: ...

    def pin_prefix(self, keys: object) -> int: ...

    def unpin(self, key: object) -> bool: ...

    def unpin_all(self) -> int: ...

    @property
    def views(self) -> int: ...

    @property
    def pins(self) -> int: ...

    def get_batch(self, keys: object) -> list[View | None]: ...

    def get_prefix(self, keys: object) -> list[View]: ...

    def reserve(self, size: int) -> Reservation | None: ...

    def put(self, keys: object, data: Sequence[Any], metas: Sequence[bytes], first_depth: int) -> list[int]: ...

    def read_into(self, keys: object, buffers: Sequence[Any]) -> list[int | None]: ...

    def touch(self, keys: object) -> int: ...

    def remove(self, keys: object) -> int: ...

    def clear(self) -> int: ...

    def retire(self) -> bool: ...

    def evict(self, nbytes: int) -> int: ...

    @property
    def slots_per_extent(self) -> int: ...

    def hold_pages(self) -> None: ...

    def extent_of(self, slot: int) -> tuple[int, int]: ...

    def entries(self, cursor: int, most: int) -> tuple[list[dict[str, Any]], int, bool]: ...

    def check(self) -> dict[str, Any]: ...

    def occupancy(self) -> dict[str, Any]: ...

    def hosts(self) -> list[dict[str, Any]]: ...

    def totals(self) -> dict[str, Any]: ...

    @property
    def last_no_space(self) -> str: ...

    def lookup_seconds(self, keys: object, rounds: int) -> float:
        """
        Seconds for `rounds` native lookups of the same keys, all of them present.
        """

class ScratchMemory:
    """Memory to measure in that holds nothing of anybody's."""

    @staticmethod
    def in_dram(nbytes: int, cpu: int) -> ScratchMemory: ...

    @staticmethod
    def in_file(path: str, nbytes: int, cpu: int) -> ScratchMemory: ...

    @staticmethod
    def on_device(path: str, nbytes: int, cpu: int) -> ScratchMemory: ...

    @property
    def kind(self) -> str: ...

    @property
    def faulted(self) -> bool: ...

    def array(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

def probe_operations() -> list[tuple[str, bool]]:
    """Names of what can be timed on this CPU, and whether it writes."""

def build_chain(memory: Any, stride: int, seed: int) -> int:
    """Links one word of every stride into a random cycle; returns how many."""

def chase_chain(memory: Any, start: int, hops: int, batch: int, seconds: float, cpu: int) -> tuple[list[float], int]:
    """
    Nanoseconds per dependent load, by batch, and the offset at which it stopped.
    """

def time_blocks(memory: Any, operation: str, block: int, samples: int, seconds: float, cpu: int) -> list[float]:
    """Nanoseconds of single runs of an operation on scattered blocks."""

def time_passes(memories: Sequence[Any], operation: str, cpus: Sequence[int], seconds: float) -> list[tuple[int, float]]:
    """
    Bytes and seconds of passes over the memories, by one thread on each of the CPUs.
    """

def page_nodes(memory: Any, samples: int) -> list[int]:
    """
    NUMA nodes of some pages, negative where there is none; empty if unknown.
    """
