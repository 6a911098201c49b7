"""Memory to measure in: of a pool, of a device, of a folder, and DRAM. Nobody's data is in it."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lmcache_beluga import _native
from lmcache_beluga.characterize.figures import Place
from lmcache_beluga.errors import InvalidArgumentError, NotAPoolError

if TYPE_CHECKING:
    from lmcache_beluga.pool import Pool
    from lmcache_beluga.reservation import Reservation

LINE = 64
_SAMPLED_PAGES = 64
_ROUNDS = 4

Memory = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Region:
    """Memory that probes may overwrite, as long as the context that opened it lasts.

    Attributes:
        memory: whole cache lines.
        pool, slot: the pool and its slot of which it is; None for scratch memory.
    """

    place: Place
    memory: Memory
    pool: Pool | None = None
    slot: Reservation | None = None

    @property
    def name(self) -> str:
        return self.place.name


@contextlib.contextmanager
def dram(nbytes: int, cpu: int) -> Iterator[Region]:
    """Private memory, of the node of ``cpu``. Raises NoSpaceError."""
    scratch = _native.ScratchMemory.in_dram(nbytes, cpu)
    memory = scratch.array()
    _fill(memory)
    yield Region(_place("local DRAM", "dram", "this machine's own memory", memory), memory)


@contextlib.contextmanager
def scratch_file(path: Path, nbytes: int, cpu: int) -> Iterator[Region]:
    """A new file, removed afterwards; where ``path`` is a folder, one of a new name in it.

    Raises InvalidArgumentError when the file exists, PoolMissingError when its folder does not,
    NoSpaceError, PoolPermissionError.
    """
    folder = path.is_dir()
    name = tempfile.mktemp(prefix="beluga-characterize-", dir=path) if folder else str(path)
    scratch = _native.ScratchMemory.in_file(name, nbytes, cpu)
    try:
        memory = scratch.array()
        _fill(memory)
        yield Region(_place(str(path), scratch.kind, _what(scratch.kind, name), memory), memory)
        _check(scratch, name)
    finally:
        os.unlink(name)


@contextlib.contextmanager
def raw_device(path: Path, nbytes: int, cpu: int) -> Iterator[Region]:
    """A part of a DAX device that holds no pool; what was there is overwritten.

    Raises PoolBusyError when it is a pool's, NotAPoolError for what is no DAX device."""
    scratch = _native.ScratchMemory.on_device(str(path), nbytes, cpu)
    memory = scratch.array()
    _fill(memory)
    yield Region(_place(str(path), "devdax", _what("devdax", str(path)), memory), memory)
    _check(scratch, str(path))


@contextlib.contextmanager
def pool_slots(pool: Pool, nbytes: int) -> Iterator[list[Region]]:
    """One slot of each device of an attached pool: reserved, and given back unpublished.

    Takes only room that is free: nothing is evicted. A device that has none is left out. Storage
    that a file gets thereby stays with the pool.
    """
    size = min(nbytes, pool.info.extent_size)
    owner = [i for i, device in enumerate(pool.info.devices) for _ in range(device.extents)]
    slots: dict[int, Reservation] = {}
    with contextlib.ExitStack() as held:
        # The pool takes its devices in turn, unless one is full.
        for _ in range(_ROUNDS * len(pool.info.devices)):
            if len(slots) == len(pool.info.devices) or not _has_room(pool):
                break
            slot = pool.reserve(size)
            if slot is None:
                break
            held.enter_context(slot)
            slots.setdefault(owner[pool.extent_of(slot.slot)[0]], slot)
        regions = []
        for number, slot in sorted(slots.items()):
            device = pool.info.devices[number]
            memory = _lines(slot.array)
            _fill(memory)
            place = _place(device.path, device.kind, _what(device.kind, device.path), memory)
            regions.append(Region(place, memory, pool, slot))
        yield regions
        if pool.closed:
            raise InvalidArgumentError(f"the pool closed meanwhile: {pool.close_reason}")


def is_pool(paths: Sequence[str]) -> bool:
    """Whether these files or devices form one pool. Raises what attaching raises of damaged ones,
    and PoolMissingError."""
    try:
        _native.geometry(list(paths))
    except NotAPoolError:
        return False
    return True


def _has_room(pool: Pool) -> bool:
    occupancy = pool.inspect()["occupancy"]
    if occupancy["extents_free"] > 0:
        return True
    # Own extents that are empty can be cut anew.
    busy = occupancy["writing"] + occupancy["closing"]
    return busy == 0 and any(cut["used"] == 0 and cut["slots"] > 0 for cut in occupancy["cuts"])


def _lines(memory: Memory) -> Memory:
    skip = -memory.ctypes.data % LINE
    return memory[skip : skip + (memory.size - skip) // LINE * LINE]


def _fill(memory: Memory) -> None:
    """Maps every page, and leaves no zeros: some CPUs move those faster."""
    memory[:] = 0xA5


def _check(scratch: _native.ScratchMemory, name: str) -> None:
    if scratch.faulted:
        raise InvalidArgumentError(f"{name}: a page was lost while it was measured: do it again")


def _place(name: str, kind: str, what: str, memory: Memory) -> Place:
    nodes = [node for node in _native.page_nodes(memory, _SAMPLED_PAGES) if node >= 0]
    node = max(set(nodes), key=nodes.count) if nodes else _device_node(name)
    return Place(name, kind, what, memory.nbytes, node, page_bytes(memory.ctypes.data))


def _device_node(path: str) -> int | None:
    try:
        text = Path(f"/sys/bus/dax/devices/{Path(path).name}/target_node").read_text()
    except OSError:
        return None
    return int(text) if int(text) >= 0 else None


def _what(kind: str, path: str) -> str:
    if kind == "devdax":
        behind = os.path.realpath(f"/sys/bus/dax/devices/{Path(path).name}")
        if "/cxl" in behind or "/region" in behind:
            return "a DAX device on a CXL region"
        return "a DAX device that the kernel does not list under CXL: it may be local memory"
    if kind == "tmpfs":
        return "tmpfs, that is local DRAM: not what CXL memory does"
    if kind == "hugetlbfs":
        return "huge pages of local DRAM: not what CXL memory does"
    return "a file system's cache in local DRAM, unless that file system maps memory devices"


def page_bytes(address: int, smaps: Path = Path("/proc/self/smaps")) -> int:
    """Bytes of most of the pages at an address of this process; 0 if the kernel does not tell."""
    facts: dict[str, int] = {}
    inside = False
    try:
        with smaps.open() as lines:
            for line in lines:
                if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                    if inside:
                        break
                    inside = int(area[1], 16) <= address < int(area[2], 16)
                elif inside and (fact := re.match(r"(\w+):\s+(\d+) kB", line)):
                    facts[fact[1]] = int(fact[2])
    except OSError:
        return 0
    if not facts:
        return 0
    huge = sum(facts.get(n, 0) for n in ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"))
    if huge * 2 > facts.get("Rss", 0) > 0:
        return 2 << 20
    return facts.get("KernelPageSize", 0) << 10


def is_character_device(path: Path) -> bool:
    """Whether it is a device, not a file."""
    try:
        return stat.S_ISCHR(os.stat(path, follow_symlinks=False).st_mode)
    except OSError:
        return False
