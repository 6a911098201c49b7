"""The Python face of the pool: format, attach, and everything one does with chunks.

A key is ``bytes`` (a record of your own) or one of LMCache's key objects (``CacheEngineKey``,
``LayerCacheEngineKey``, ``ObjectKey``); see :mod:`lmcache_beluga.keys`. Sizes are bytes, times are
milliseconds. Every method of an attached pool raises
:class:`~lmcache_beluga.errors.PoolClosedError` once the pool is closed (by :meth:`Pool.close`, or
because its file shrank or was formatted anew) and :class:`~lmcache_beluga.errors.ForkedHandleError`
in a forked child."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeAlias

from . import _native
from .batches import Batches
from .errors import InvalidArgumentError
from .pool_arguments import ATTACH_NAMES, FORMAT_NAMES, AttachArguments, FormatArguments
from .pool_info import (
    CheckReport,
    Device,
    Entry,
    HostInfo,
    PoolInfo,
    PutResult,
    host_of,
    info_of,
)
from .reservation import Key, Reservation
from .view import View

__all__ = [
    "CheckReport",
    "Device",
    "Entry",
    "HostInfo",
    "Key",
    "Memory",
    "PathArgument",
    "Pool",
    "PoolInfo",
    "PutResult",
    "Reservation",
    "View",
]

#: One path, or the paths of several devices that form one pool, always in the same order.
PathArgument: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
#: A C-contiguous buffer, or ``(address, bytes)`` of memory that has no Python buffer.
Memory: TypeAlias = Any

_LIST_BATCH = 1024
_RETIRE_POLL_S = 0.02
_LEND_MOST_S = 3600


def _paths(path: PathArgument) -> str | list[str]:
    if isinstance(path, (str, os.PathLike)):
        return os.fspath(path)
    return [os.fspath(one) for one in path]


class Pool:
    """One process's handle on one pool. Make it with :meth:`attach` or :meth:`open`.

    Thread-safe.
    """

    def __init__(self, native: _native.Pool) -> None:
        self._native = native
        self.info = info_of(native.geometry)
        _attached.add(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"host {self.host_id}"
        return f"<Pool {self.info.devices[0].path} {self.uuid} ({state})>"

    @staticmethod
    def format(path: PathArgument, *, size: int | None = None, **options: Any) -> PoolInfo:
        """Formats files or devices as one empty pool.

        ``size``: bytes of each file; needed for files that do not exist, ignored for DAX devices.
        ``max_hosts``: host ids it has room for (1..64). ``extent_size``: a power of two; by default
        a sixteenth of the pool, at most 1 GiB, and at least eight typical chunks. ``chunk_hint``:
        bytes of a typical chunk (default 256 KiB), which sizes index and slots. ``visibility``:
        ``coherent`` or ``noncoherent``; ``payload_visibility``: ``flush``, or ``direct`` where
        payload is never cached (see the settings of these names). ``key_scheme``: how keys are
        made, checked at attach. ``mode``: permission bits of new files (0o600, whatever the umask).
        ``force``: format although it is in use.

        Raises PoolBusyError, NotAPoolError, PoolMissingError, PoolPermissionError, NoSpaceError,
        InvalidArgumentError, UnsupportedError, PoolIOError.
        """
        arguments = FormatArguments(**options)
        _native.format(_paths(path), size or 0, arguments.native())
        return info_of(_native.geometry(_paths(path)))

    @classmethod
    def attach(cls, path: PathArgument, **options: Any) -> Pool:
        """Attaches to an existing pool as one more process of a host.

        ``host_id``: which host (0 on a single machine). ``uuid``: refuse any other pool.
        ``key_scheme``: refuse a pool whose keys were made in another way. ``takeover``: the machine
        that had this host id is off for good. ``lease_ms``: how long a lease lives without renewal;
        renewal is automatic. ``pin_timeout_ms``: after which a pin that nobody took back lapses.
        ``heartbeat_ms``, ``dead_after_ms``: a host without a heartbeat for that long holds no
        leases. ``lock_timeout_ms``: after which a put is refused because a lock holder is stopped.
        ``copy_threads``: of large copies (0: up to 4). ``prefault``: allocate all payload now.
        ``verify``: store payload checksums, and compare them when reading.
        ``control_dir``: where processes of this host meet (/dev/shm). ``mode``: permission bits of
        the control block.

        Raises PoolMissingError, NotAPoolError, HalfFormattedError, VersionMismatchError,
        CorruptPoolError, PoolTruncatedError, PoolPermissionError, PoolUuidError, KeySchemeError,
        HostInUseError, PoolBusyError, NoSpaceError, UnsupportedError, InvalidArgumentError,
        PoolIOError."""
        return cls(_native.attach(_paths(path), AttachArguments(**options).native()))

    @classmethod
    def open(cls, path: PathArgument, *, size: int | None = None, **options: Any) -> Pool:
        """Attaches; formats first when the files do not exist yet and ``size`` is given.

        Takes the keywords of :meth:`format` and :meth:`attach`. Several processes may open a
        missing pool at once: one formats it, the others wait."""
        unknown = set(options) - FORMAT_NAMES - ATTACH_NAMES
        if unknown:
            raise TypeError(f"Pool.open() got unknown keywords: {', '.join(sorted(unknown))}")
        make = {n: v for n, v in options.items() if n in FORMAT_NAMES and n != "key_scheme"}
        scheme = options.get("key_scheme") or ""
        join = {n: v for n, v in options.items() if n in ATTACH_NAMES}
        native = _native.open(
            _paths(path),
            size or 0,
            FormatArguments(key_scheme=scheme, **make).native(),
            AttachArguments(**join).native(),
        )
        return cls(native)

    @staticmethod
    def hosts(path: PathArgument, *, watch_ms: int = 60_000) -> list[HostInfo]:
        """The hosts that take part in a pool, or did, seen from outside: attaches to nothing.

        Watches until each has beaten or has been silent for its ``dead_after_ms``, at most
        ``watch_ms``: it takes as long as the longest silence. Raises what :meth:`attach` raises
        when there is no pool."""
        return [host_of(facts) for facts in _native.hosts(_paths(path), watch_ms)]

    # ---- what is there

    @property
    def uuid(self) -> str:
        return self.info.uuid

    @property
    def host_id(self) -> int:
        return self._native.host_id

    @property
    def closed(self) -> bool:
        return self._native.closed

    @property
    def close_reason(self) -> str:
        """Why the pool is closed; empty while it is open."""
        return self._native.close_reason

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        """Which of the keys are present, on whichever host. Takes no lease."""
        return self._native.contains(keys)

    def contains_prefix(self, keys: Sequence[Key]) -> int:
        """How many keys from the first on are present. Takes no lease."""
        return self._native.contains_prefix(keys)

    def is_duplicate(self, key: Key) -> bool:
        """Whether a put of ``key`` would find it present, and counts as such a put if so."""
        return self._native.is_duplicate(key)

    def pin_prefix(self, keys: Sequence[Key]) -> int:
        """Like :meth:`contains_prefix`, and pins those keys: leased until :meth:`unpin`, or
        ``pin_timeout_ms``.

        Each key's pins are counted, per process.
        """
        return self._native.pin_prefix(keys)

    def pin(self, key: Key) -> bool:
        """Pins one key; False if it is absent."""
        return self._native.pin_prefix((key,)) == 1

    def unpin(self, key: Key) -> bool:
        """Takes one pin back; False if there is none (any more)."""
        return self._native.unpin(key)

    def unpin_batch(self, keys: Sequence[Key]) -> int:
        """Takes one pin of each key back; returns of how many there was one."""
        return self._native.unpin_batch(keys)

    def pinned(self, keys: Sequence[Key]) -> list[bool]:
        """Which of the keys this handle pins."""
        return self._native.pinned(keys)

    def unpin_all(self) -> int:
        """Takes all pins of this process back and says how many there were."""
        return self._native.unpin_all()

    # ---- storing

    def put(self, key: Key, data: Memory, *, meta: bytes = b"", depth: int = 0) -> PutResult:
        """Stores a chunk by one streaming copy. On return every host can find it.

        ``data``: any C-contiguous buffer of at least one byte. ``meta``: a few bytes kept with the
        key. ``depth``: position in its prefix; suffixes are evicted before prefixes. Raises
        ChunkTooLargeError, RecordTooLargeError, InvalidArgumentError."""
        return PutResult(self._native.put((key,), (data,), (meta,), depth)[0])

    def put_batch(
        self,
        keys: Sequence[Key],
        data: Sequence[Memory],
        *,
        metas: Sequence[bytes] = (),
        first_depth: int = 0,
    ) -> list[PutResult]:
        """Stores several chunks, key ``i`` at depth ``first_depth + i``. See :meth:`put`."""
        return [PutResult(r) for r in self._native.put(keys, data, metas, first_depth)]

    def reserve(self, size: int, key: Key | None = None) -> Reservation | None:
        """A slot to write ``size`` bytes into. None when there is no room, or ``key`` is present
        already.

        Raises ChunkTooLargeError and InvalidArgumentError.
        """
        if size < 1:
            raise InvalidArgumentError("a chunk must have at least one byte")
        if key is not None and self._native.contains_prefix((key,)) == 1:
            return None
        native = self._native.reserve(size)
        return None if native is None else Reservation(native)

    def reserve_batch(self, size: int, count: int) -> list[Reservation]:
        """At most ``count`` slots of ``size`` bytes each: fewer when there is no room for all.

        Raises ChunkTooLargeError and InvalidArgumentError.
        """
        if size < 1:
            raise InvalidArgumentError("a chunk must have at least one byte")
        return [Reservation(native) for native in self._native.reserve_batch(size, count)]

    def commit_batch(
        self,
        reservations: Sequence[Reservation],
        keys: Sequence[Key],
        *,
        metas: Sequence[bytes],
        sizes: Sequence[int],
        depths: Sequence[int],
        keep: bool = False,
    ) -> list[tuple[PutResult, View | None]]:
        """Publishes what was written to several reservations, each as :meth:`Reservation.commit`
        does, or with ``keep`` as :meth:`Reservation.commit_view`.

        Raises InvalidArgumentError (before anything is published, unless a reservation is over
        already) and RecordTooLargeError (what comes before that one is published).
        """
        native = [one._native for one in reservations]
        results = self._native.commit_batch(native, keys, metas, sizes, depths, keep)
        return [(PutResult(r), None if view is None else View(view)) for r, view in results]

    # ---- reading

    def get(self, key: Key) -> View | None:
        """A leased view of the chunk; None when it is absent."""
        native = self._native.get_batch((key,))[0]
        return None if native is None else View(native)

    def get_batch(self, keys: Sequence[Key]) -> list[View | None]:
        """Leased views of the chunks, None where absent."""
        return [None if v is None else View(v) for v in self._native.get_batch(keys)]

    def lease_batch(self, keys: Sequence[Key]) -> list[_native.View | None]:
        """As :meth:`get_batch`, with each view's :attr:`View.native`."""
        return self._native.get_batch(keys)

    def get_prefix(self, keys: Sequence[Key]) -> list[View]:
        """Leased views of the longest present prefix."""
        return [View(v) for v in self._native.get_prefix(keys)]

    def read_into(self, key: Key, buffer: Memory) -> int | None:
        """Copies a chunk into a writable buffer. Returns its bytes, or None when it is absent.

        Raises InvalidArgumentError if the buffer is too small.
        """
        copied: list[int | None] = self._native.read_into((key,), (buffer,))
        return copied[0]

    def read_batch_into(self, keys: Sequence[Key], buffers: Sequence[Memory]) -> list[int | None]:
        """Copies chunks into writable buffers, several at once. See :meth:`read_into`."""
        return self._native.read_into(keys, buffers)

    def batches(self) -> Batches:
        """Native threads that store, look up and load batches of chunks for a caller who does not
        wait. Close it before the pool."""
        return Batches(self._native)

    # ---- keeping and removing

    def touch(self, keys: Sequence[Key]) -> int:
        """Marks chunks as used now. Returns how many are present."""
        return self._native.touch(keys)

    def remove(self, keys: Sequence[Key]) -> int:
        """Removes chunks, whoever owns them. Returns of how many keys there was a copy.

        No lookup finds one that this host owns any more. The owners of others are asked, and act
        at their next heartbeat: such a chunk may be found until then, and one of a dead host until
        that host is back, or retired. Requests wait in a ring of 128 entries; where an owner lags
        behind, this waits for up to ten heartbeats, and keys for which there is no room then are
        not counted. The space of a chunk that is leased comes back when its leases end."""
        return self._native.remove(keys)

    def clear(self) -> int:
        """Removes all chunks. Returns how many of this host there were.

        Those are found no more, and empty extents are given back. The other hosts are asked to do
        the same, and act at their next heartbeat: what they store until then goes, too. A dead host
        acts when it comes back."""
        return self._native.clear()

    def evict(self, nbytes: int) -> int:
        """Evicts the coldest unleased chunks of this host until about ``nbytes`` are free.

        Returns bytes freed. Other hosts' chunks are not touched: a host that needs room asks for it
        by itself, and gets the coldest of the pool.
        """
        return self._native.evict(nbytes)

    def retire(self, *, timeout_ms: int = 60_000) -> bool:
        """Takes this host out of the pool for good: its chunks go, its extents become free.

        Waits for the leases that others hold on its chunks. True: done, and this handle is closed.
        False: after ``timeout_ms`` some are still leased; the chunks are gone, their space is not:
        call it again. From the first call on this handle stores nothing.

        To retire a host whose machine is gone, attach as that host with ``takeover``, but only
        once that machine is powered off or cut off: what it still writes would land in other hosts'
        chunks. Raises HostInUseError while other processes of the host are attached."""
        deadline = time.monotonic() + timeout_ms / 1000
        while not self._native.retire():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_RETIRE_POLL_S)
        self._native.close()
        return True

    # ---- looking inside

    def keys(self) -> Iterator[Entry]:
        """All chunks of all hosts, in no particular order, as they are when the walk comes by."""
        cursor, done = 0, False
        while not done:
            entries, cursor, done = self._native.entries(cursor, _LIST_BATCH)
            for entry in entries:
                yield Entry(**entry)

    def page(self, cursor: int, most: int) -> tuple[list[Entry], int | None]:
        """Up to ``most`` chunks from ``cursor`` on (0: the first), and where to go on; None at the
        end."""
        entries, cursor, done = self._native.entries(cursor, most)
        return [Entry(**entry) for entry in entries], None if done else cursor

    def usage_by_salt(self) -> tuple[int, dict[str, int]]:
        """Bytes of all chunks, and of those stored under an LMCache ObjectKey by its cache_salt.

        Walks all slots: about 1 ms for each thousand chunks."""
        total, salts = _native.usage_by_salt(self._native)
        return total, {salt.decode(errors="replace"): size for salt, size in salts.items()}

    def extent_of(self, slot: int) -> tuple[int, int]:
        """The extent of a slot, and the address at which its ``info.extent_size`` bytes of payload
        begin in this process. Raises InvalidArgumentError for a slot that there is not."""
        return self._native.extent_of(slot)

    @property
    def base_address(self) -> int:
        """The address at which the first file or device begins in this process: what is at an
        address in it has the difference as its offset there."""
        address: int = self._native.geometry["devices"][0]["address"]
        return address

    @property
    def slots_per_extent(self) -> int:
        """Numbers of slots that belong to one extent: slot ``n`` is in extent ``n // this``."""
        return self._native.slots_per_extent

    def one_of_each_extent(self) -> Iterator[Entry]:
        """A chunk of each extent that holds any, in order, as they are when the walk comes by."""
        cursor, done = 0, False
        while not done:
            entries, cursor, done = self._native.entries(cursor, 1)
            for entry in entries:
                yield Entry(**entry)
                cursor = (entry["extent"] + 1) * self.slots_per_extent

    def lend(self, seconds: float) -> None:
        """Says that processes which are not attached use this handle's views and reservations, at
        their own addresses. When it ends while it has any, orderly or not, these stay untouched for
        ``seconds`` after the end of this process, so that others can end what they do. (If it was
        the last of its host, the next one waits no longer for that than ``dead_after_ms``.) 0: not
        any more. Raises InvalidArgumentError when negative or over 1 h."""
        if not 0 <= seconds <= _LEND_MOST_S:
            raise InvalidArgumentError(f"lend {seconds} s: give 0 to {_LEND_MOST_S} s")
        self._native.lend(round(1000 * seconds))

    def hold_pages(self) -> bool:
        """Keeps the pool's memory in place for GPUs, until this handle is closed: processes of this
        host do not give the payload of extents that become empty back to the file system. (Other
        hosts may, in a pool of files.)

        False when a process of this host may be about to, such as one that is stopped: then an
        extent may only be registered while a view or a reservation in it is held."""
        return self._native.hold_pages()

    def note_kept(self, extent: int) -> None:
        """Says that all memory of an extent is there and stays: :meth:`hold_pages` was True, or the
        pool is on a device. Slots there then need not ask the kernel for it, which takes 0.6 ms per
        32 MiB even so. Raises InvalidArgumentError for a number that no extent has."""
        self._native.note_kept(extent)

    def stats(self) -> dict[str, int]:
        """Counters of this host since it recovered, and gauges of its part of the pool. Walks all
        its slots.

        ``views`` and ``pins`` are this handle's; ``leased`` are chunks that any process of the
        host leases."""
        occupancy = self._native.occupancy()
        occupancy.pop("cuts")
        stats: dict[str, int] = {**self._native.totals(), **occupancy}
        stats["pins"] = self._native.pins
        stats["views"] = self._native.views
        stats["bytes_capacity"] = self.info.capacity
        return stats

    @property
    def last_no_space(self) -> str:
        """What the file system said when it last refused storage; empty if it never did."""
        return self._native.last_no_space

    def inspect(self) -> dict[str, Any]:
        """Geometry, hosts, occupancy per slot size and counters, ready for JSON."""
        geometry = self._native.geometry
        for device in geometry["devices"]:
            device.pop("address")
        occupancy = self._native.occupancy()
        for cut in occupancy["cuts"]:
            held = cut["used"] * cut["slot_size"]
            cut["wasted"] = held - cut["bytes_used"]
            cut["waste_ratio"] = cut["wasted"] / held if held else 0.0
        return {
            "geometry": geometry,
            "hosts": self._native.hosts(),
            "occupancy": {**occupancy, "bytes_capacity": self.info.capacity},
            "counters": self._native.totals(),
        }

    def check(self) -> CheckReport:
        """Walks and validates every record. Safe while the pool is in use."""
        return CheckReport(**self._native.check())

    # ---- ending

    def close(self) -> None:
        """Detaches: leases and pins end, views become invalid. Idempotent.

        Memory that views or reservations refer to stays mapped until they are gone.
        """
        self._native.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_attached: weakref.WeakSet[Pool] = weakref.WeakSet()


@atexit.register
def _detach_all() -> None:
    """A process that ends in an orderly way leaves nothing behind, also when it forgot to close."""
    for pool in list(_attached):
        pool.close()
