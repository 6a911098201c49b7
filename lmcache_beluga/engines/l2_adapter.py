"""LMCache's multiprocess mode: the pool as a second-level cache behind a server's own memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface

from lmcache_beluga.batches import Address
from lmcache_beluga.engines import l2_reconfiguration
from lmcache_beluga.engines.l2_buffers import source, target
from lmcache_beluga.engines.l2_config import BelugaL2AdapterConfig
from lmcache_beluga.engines.l2_listing import list_page
from lmcache_beluga.engines.l2_underway import Underway
from lmcache_beluga.engines.l2_usage import PoolUsage
from lmcache_beluga.engines.layout import LayoutCodec
from lmcache_beluga.engines.prefix_depths import PrefixDepths, first_row
from lmcache_beluga.engines.refusals import say_refused
from lmcache_beluga.engines.trouble import TroubleLog, log_as_lmcache, logger
from lmcache_beluga.errors import BelugaError
from lmcache_beluga.pool import Pool, PutResult

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import KeyListPage, MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.internal_api import L1MemoryDesc
    from lmcache.v1.distributed.l2_adapters.reconfiguration import L2ReconfigureStatus
    from lmcache.v1.memory_management import MemoryObj


MOST_COPY_THREADS = 16
"""More bring little: they wait for memory."""


class Storing(NamedTuple):
    """A store under way."""

    keys: list[ObjectKey]
    sizes: list[int]
    memory: object


class Loading(NamedTuple):
    """A load under way."""

    keys: list[ObjectKey]
    at: list[int]
    """Positions in ``keys`` of what is loaded: the others have no buffer that could be filled."""
    memory: object


class BelugaL2Adapter(L2AdapterInterface):  # type: ignore[misc]
    """Stores an LMCache server's chunks in a pool that other servers, engines and hosts share.

    LMCache makes it from ``--l2-adapter '{"type": "plugin", "module_path": "lmcache_beluga",
    "class_name": "BelugaL2Adapter", "adapter_params": {"pool": "/dev/dax0.0"}}'``. Stores, loads
    and long lookups are done by native threads. A lock is a lease: what a lookup found is not
    evicted until it is unlocked, or for beluga.pin_timeout. The pool evicts by itself, what was
    used least recently by anybody.

    What goes wrong with the pool at run time is logged; LMCache is told of misses and of stores
    that failed.

    Raises BelugaError from its constructor, which ends the server's start.
    """

    def __init__(
        self, config: BelugaL2AdapterConfig, l1_memory_desc: L1MemoryDesc | None = None
    ) -> None:
        log_as_lmcache()
        arguments = config.settings.pool_arguments()
        # A server copies for all engines of its machine.
        arguments["copy_threads"] = arguments["copy_threads"] or min(
            MOST_COPY_THREADS, len(os.sched_getaffinity(0))
        )
        self._pool = Pool.open(**arguments)
        super().__init__(max_capacity_bytes=self._pool.info.capacity)
        self._batches = self._pool.batches()
        self._stores: Underway[Storing] = Underway(lambda task: None)  # each is taken when it ends
        self._lookups: Underway[list[ObjectKey]] = Underway(self._batches.take_lookup)
        self._loads: Underway[Loading] = Underway(self._batches.take_load)
        self._codec = LayoutCodec()
        self._depths = PrefixDepths()
        self._usage = PoolUsage(self._pool)
        self._trouble = TroubleLog()
        self._closed = False
        logger.info("L2 adapter attached to pool %s", self._pool.uuid)

    # Event descriptors

    def get_store_event_fd(self) -> int:
        """Readable when stores have ended."""
        return self._batches.store_fd

    def get_lookup_and_lock_event_fd(self) -> int:
        """Readable when lookups have ended."""
        return self._batches.lookup_fd

    def get_load_event_fd(self) -> int:
        """Readable when loads have ended."""
        return self._batches.load_fd

    # Store

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Store each object under its key. Keys that the pool has are left as they are."""
        try:
            sources = [source(obj) for obj in objects]
            metas = [self._codec.declared(obj) for obj in objects]
            kept = Storing(keys, [data[1] for data, _ in sources], (objects, sources))
            depth = self._depths.first_of(keys) if keys else 0
            return self._stores.begin(
                lambda: self._batches.submit_store(
                    keys, [data for data, _ in sources], metas, first_depth=depth
                ),
                kept,
            )
        except ValueError as error:
            self._failed("store", error)
            return self._stores.begin(
                lambda: self._batches.submit_store((), (), ()), Storing(keys, [], None)
            )

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        """How stores ended: a store failed if any of its chunks was refused."""
        ends: dict[int, L2StoreResult] = {}
        for end in self._batches.take_stores():
            storing = self._stores.end(end.task)
            if storing is None:
                continue
            self._tell("store", end.trouble)
            results = end.results
            resident = [i for i, result in enumerate(results) if result is not PutResult.REFUSED]
            if resident:
                self._notify_keys_stored(
                    [storing.keys[i] for i in resident], [storing.sizes[i] for i in resident]
                )
            if not end.trouble and (refused := results.count(PutResult.REFUSED)):
                self._guarded("store", partial(say_refused, self._pool, self._trouble, refused))
            stored = sum(
                size
                for size, result in zip(storing.sizes, results, strict=True)
                if result is PutResult.STORED
            )
            ends[end.task] = L2StoreResult(len(resident) == len(storing.keys), stored)
        return ends

    # Lookup and lock

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        """Find keys, whichever are missing in between, and keep those found until unlocked."""
        try:
            return self._lookups.begin(lambda: self._batches.submit_lookup(keys), keys)
        except ValueError as error:
            self._failed("lookup", error)
            return self._lookups.begin(lambda: self._batches.submit_lookup(()), keys)

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        """Which keys were found and locked; None if the lookup has not ended, or was asked for."""
        end = self._batches.take_lookup(task_id)
        if end is None:
            return None
        self._tell("lookup", end.trouble)
        keys = self._lookups.end(task_id) or []
        leading = _leading(end.hits)
        if leading < len(end.hits):
            self._depths.looked_up(first_row(keys), leading)
        return _bitmap(len(keys), end.hits, leading)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Undo one lock of each key. Never fails: a lock that there is not (any more) is none."""
        self._guarded("unlock", lambda: self._pool.unpin_batch(keys))

    # Load

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Copy chunks into the objects. One with other shapes or dtypes than its object is a
        miss."""
        at: list[int] = []
        buffers: list[Address] = []
        for position, obj in enumerate(objects):
            try:
                buffers.append(target(obj))
                at.append(position)
            except ValueError as error:
                self._failed("load", error)
        kept = Loading(keys, at, objects)
        wanted = keys if len(at) == len(keys) else [keys[i] for i in at]
        try:
            metas = [self._codec.declared(objects[i]) for i in at]
            return self._loads.begin(
                lambda: self._batches.submit_load(wanted, buffers, metas), kept
            )
        except ValueError as error:
            self._failed("load", error)
            return self._loads.begin(
                lambda: self._batches.submit_load((), (), ()), Loading(keys, [], None)
            )

    def query_load_result(self, task_id: int) -> Bitmap | None:
        """Which objects were filled; None if the load has not ended, or was asked for before."""
        end = self._batches.take_load(task_id)
        if end is None:
            return None
        self._tell("load", end.trouble)
        loading = self._loads.end(task_id)
        if loading is None:
            return Bitmap(0)
        keys, at, _ = loading
        hits = end.hits
        if len(at) < len(keys):
            placed = bytearray(len(keys))
            for position, hit in zip(at, hits, strict=True):
                placed[position] = hit
            hits = bytes(placed)
        bitmap = _bitmap(len(keys), hits, _leading(hits))
        loaded = bitmap.gather(keys)
        if loaded:
            self._notify_keys_accessed(loaded)
        return bitmap

    # Removal, usage, listing

    def delete(self, keys: list[ObjectKey]) -> None:
        """Remove chunks, except those that this server has locked.

        Chunks of other hosts go at their next heartbeat.
        """

        def remove() -> None:
            free = [
                key for key, held in zip(keys, self._pool.pinned(keys), strict=True) if not held
            ]
            found = [
                (key, view.size)
                for key, view in zip(free, self._pool.get_batch(free), strict=True)
                if view is not None
            ]
            self._pool.remove([key for key, _ in found])
            self._usage.changed()
            if found:
                self._notify_keys_deleted([key for key, _ in found], [size for _, size in found])

        self._guarded("delete", remove)

    def get_usage(self) -> AdapterUsage:
        """Bytes in the pool, of all servers, engines and hosts, and by cache_salt."""
        try:
            return self._usage.now()
        except BelugaError as error:
            # LMCache's eviction thread would end with an exception.
            self._failed("usage", error)
            return AdapterUsage(total_bytes_used=0, total_capacity_bytes=self._max_capacity_bytes)

    def list_l2_keys(
        self, model_name: str | None = None, page_size: int = 500, cursor: str | None = None
    ) -> KeyListPage:
        """The pool's chunks that servers stored, whichever did."""
        return list_page(self._pool, model_name, page_size, cursor)

    # Status, reconfiguration

    def report_status(self) -> dict[str, Any]:
        """State of the adapter and of this host's part of the pool."""
        status: dict[str, Any] = {
            "is_healthy": not self._pool.closed,
            "type": "BelugaL2Adapter",
            "pool": [device.path for device in self._pool.info.devices],
            "uuid": self._pool.uuid,
            "host_id": self._pool.host_id,
            "tasks": self._batches.pending,
        }
        try:
            stats = self._pool.stats()
        except BelugaError as error:
            return {**status, "is_healthy": False, "trouble": str(error)}
        return {**status, "stored_object_count": stats["chunks"], "locked": stats["pins"], **stats}

    def owns_device(self, device_path: str) -> bool:
        """Whether the pool lies on this device, under whichever name."""
        wanted = _identity(device_path)
        return wanted is not None and any(
            _identity(device.path) == wanted for device in self._pool.info.devices
        )

    def reconfigure_status(self) -> L2ReconfigureStatus:
        """What LMCache's HTTP API can do to the pool, and its state."""
        return l2_reconfiguration.status(self._pool)

    def reconfigure(
        self,
        operation: str,
        payload: dict[str, object],
        *,
        device_owners: Callable[[str], list[str]],
    ) -> dict[str, Any]:
        """``status``, or ``evict`` with ``{"bytes": "4GiB"}``; see ``l2_reconfiguration``."""
        return l2_reconfiguration.apply(self._pool, operation, payload)

    # Life

    def close(self) -> None:
        """End what waits, wait for what is being copied, and detach. Chunks stay in the pool.

        After it no thread touches the memory of LMCache's objects.
        """
        if self._closed:
            return
        self._closed = True
        self._batches.close()
        self._pool.close()

    def _guarded(self, operation: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self._failed(operation, error)

    def _tell(self, operation: str, trouble: str) -> None:
        if trouble:
            self._failed(operation, BelugaError(trouble))

    def _failed(self, operation: str, error: Exception) -> None:
        # After close, misses are what LMCache asked for.
        if not self._closed:
            self._trouble.failed(operation, error)


def _leading(hits: bytes) -> int:
    first_miss = hits.find(0)
    return len(hits) if first_miss < 0 else first_miss


def _bitmap(size: int, hits: Sequence[int], leading: int) -> Bitmap:
    bitmap = Bitmap(size, leading)
    if leading < len(hits):
        bitmap.batched_set([i for i in range(leading, len(hits)) if hits[i]])
    return bitmap


def _identity(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_rdev,) if found.st_rdev else (found.st_dev, found.st_ino)
