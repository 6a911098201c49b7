"""The pool as the L1 of LMCache's multiprocess server: what it stores, every host finds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from lmcache.v1.distributed.api import L1BackendType
from lmcache.v1.distributed.error import L1Error, L1ReconfigureError
from lmcache.v1.distributed.internal_api import L1ObjectMeta
from lmcache.v1.distributed.l1_manager import next_l1_manager_id, validate_read_locks
from lmcache.v1.distributed.memory_manager import L1MemoryManager

from lmcache_beluga.engines.l1_events import L1Events
from lmcache_beluga.engines.l1_gauges import register_gauges
from lmcache_beluga.engines.l1_layouts import EngineLayouts
from lmcache_beluga.engines.l1_memory import L1Memory
from lmcache_beluga.engines.l1_reach import ServerReach
from lmcache_beluga.engines.l1_reads import SUCCESS, ReadLocks
from lmcache_beluga.engines.l1_vanished import writer_vanished
from lmcache_beluga.engines.l1_writes import Staged, WriteReservations
from lmcache_beluga.engines.prefix_depths import PrefixDepths
from lmcache_beluga.engines.trouble import TroubleLog, logger
from lmcache_beluga.pool import PutResult

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
    from lmcache.v1.distributed.internal_api import L1ManagerListener, L1OperationResult
    from lmcache.v1.memory_management import MemoryObj

    from lmcache_beluga.pool import Pool

ABANDONED_S = 60.0
"""How long after its lapse a write reservation waits for another writer of its key."""
LENT_S = 60.0
"""How long engines that map the pool may go on with a copy when their server has died."""


Written: TypeAlias = "tuple[ObjectKey, Staged]"

_MISSING = (L1Error.KEY_NOT_EXIST, None)


class BelugaL1:
    """LMCache's ``L1ManagerInterface`` over a pool that other servers, engines and hosts share.

    Resident is what the pool has, whoever stored it. Read locks are leases, write reservations are
    slots of the pool that nobody sees; both end with the process, and lapse after LMCache's
    ``--l1-read-ttl-seconds`` and ``--l1-write-ttl-seconds`` when a request never comes back.
    Objects are views of the pool: a GPU copies from and to the slots. What LMCache calls temporary
    is kept out of the pool, in a slot of its own.

    The pool evicts by itself, the coldest chunk of all hosts first, when a store needs room. To
    keep LMCache's eviction controller from deleting what the pool would keep, ``get_memory_usage``
    counts only what cannot be evicted now, and no key is evictable.

    No call raises but ``reserve_write`` on lists of different lengths, as LMCache's own: trouble
    with the pool is logged, and told as the L1Error that fits.
    """

    def __init__(
        self,
        config: L1ManagerConfig,
        pool: Pool,
        *,
        verify: bool = False,
        prefault: bool = False,
        lends: bool = False,
    ) -> None:
        """Takes ``pool`` over and closes it. ``verify``: the pool compares checksums at each look,
        so that shared leases are not looked at more often than need be. ``prefault``: GPUs are to
        reach all of the pool soon. ``lends``: engines map the pool, and copy by themselves."""
        self._config = config
        self._pool = pool
        self._id = next_l1_manager_id()
        self._trouble = TroubleLog()
        self._backend = (
            L1BackendType.DEVDAX
            if any(device.kind == "devdax" for device in pool.info.devices)
            else L1BackendType.DRAM
        )
        self._events = L1Events(config.tag, self._backend)
        self.layouts = EngineLayouts()
        """Of the engines here: chunks of other layouts are not found."""
        self._memory = L1Memory(
            pool,
            ServerReach(pool, everything=prefault),
            lambda: L1MemoryManager(_private(config.memory_config)),
            self.layouts,
            self._trouble,
            self._id,
        )
        self._reads = ReadLocks(
            self._pool.lease_batch, self._memory, config.read_ttl_seconds, not verify, self._trouble
        )
        self._writes = WriteReservations(config.write_ttl_seconds)
        self._depths = PrefixDepths()
        self._closed = False
        self._lends = lends
        if lends:
            pool.lend(LENT_S)
        register_gauges(self, pool)
        logger.info("the L1 is pool %s, as host %d", pool.uuid, pool.host_id)

    @property
    def l1_manager_id(self) -> int:
        """LMCache's number of this L1 in this process."""
        return int(self._id)

    @property
    def config(self) -> L1ManagerConfig:
        """LMCache's settings."""
        return self._config

    def register_listener(self, listener: L1ManagerListener) -> None:
        """Tell ``listener`` what happens here, unless it is LMCache's eviction policy."""
        self._events.register(listener)

    # Reading

    def reserve_read(
        self, keys: list[ObjectKey], read_locks: int = 1
    ) -> dict[ObjectKey, L1OperationResult]:
        """Lock each key ``read_locks`` times. KEY_NOT_EXIST: the pool does not have it."""
        locks = validate_read_locks(read_locks)
        self._sweep()
        try:
            objs = self._reads.take(keys, locks)
        except Exception as error:
            self._failed("lookup", error)
            objs = [None] * len(keys)
        found: dict[ObjectKey, L1OperationResult]
        if None not in objs:
            found = {key: (SUCCESS, obj) for key, obj in zip(keys, objs, strict=True)}
            self._events.read_reserved(list(keys))
            return found
        found = {}
        locked: list[ObjectKey] = []
        hits = -1
        for key, obj in zip(keys, objs, strict=True):
            if obj is None:
                found.setdefault(key, _MISSING)
                hits = len(locked) if hits < 0 else hits
            else:
                found[key] = (SUCCESS, obj)
                locked.append(key)
        self._depths.looked_up(keys, hits)
        self._events.read_reserved(locked)
        return found

    def unsafe_read(self, keys: list[ObjectKey]) -> dict[ObjectKey, L1OperationResult]:
        """The objects of keys that were locked. KEY_NOT_EXIST; KEY_NOT_READABLE: not locked, or
        the lease was lost, so that LMCache fails the load."""
        try:
            return self._absent_or(self._reads.peek(keys), L1Error.KEY_NOT_READABLE)
        except Exception as error:
            self._failed("read", error)
            return {key: _MISSING for key in keys}

    def finish_read(self, keys: list[ObjectKey], read_locks: int = 1) -> dict[ObjectKey, L1Error]:
        """Unlock each key ``read_locks`` times. KEY_NOT_EXIST; KEY_IN_WRONG_STATE: not locked, or
        the lease was lost while it was read."""
        locks = validate_read_locks(read_locks)
        try:
            results, gone = self._reads.give_back(keys, locks)
            failed = [key for key, error in results.items() if error is not SUCCESS]
            absent = [key for key in failed if results[key] is L1Error.KEY_NOT_EXIST]
            for key, present in zip(absent, self._present(absent), strict=True):
                if present:
                    results[key] = L1Error.KEY_IN_WRONG_STATE
        except Exception as error:
            self._failed("unlock", error)
            return dict.fromkeys(keys, L1Error.KEY_NOT_EXIST)
        if failed and (times := self._trouble.due("unlocked", len(failed))):
            logger.warning(
                "%d chunks were unlocked that were not locked (any more) since last reported",
                times,
            )
        unlocked = [k for k, e in results.items() if e is SUCCESS] if failed else list(results)
        self._events.read_finished(unlocked, gone)
        return results

    # Writing

    def reserve_write(
        self,
        keys: list[ObjectKey],
        is_temporary: list[bool],
        layout_desc: MemoryLayoutDesc,
        tag: str = "",
    ) -> dict[ObjectKey, L1OperationResult]:
        """A slot of the pool for each key. KEY_NOT_WRITABLE: it is there, or ``tag`` writes it
        already; OUT_OF_MEMORY: the pool is full of what is in use. Room that does for some of the
        keys goes to the first ones."""
        if len(keys) != len(is_temporary):
            raise ValueError(f"{len(keys)} keys, but {len(is_temporary)} is_temporary flags")
        self._sweep()
        found: dict[ObjectKey, L1OperationResult] = {}
        needed: list[tuple[int, ObjectKey, bool]] = []
        try:
            needed = self._writable(keys, is_temporary, tag, found)
            objs = self._memory.writing(layout_desc, len(needed)) if needed else []
            depth = self._depths.first_of(keys) if keys else 0
            for (index, key, temporary), obj in zip(needed, objs, strict=False):
                if self._writes.add(key, tag, obj, temporary, depth + index):
                    found[key] = (L1Error.SUCCESS, obj)
                else:
                    self._memory.release(obj)
                    found[key] = (L1Error.KEY_NOT_WRITABLE, None)
        except Exception as error:
            self._failed("reserve", error)
        for key in keys:
            found.setdefault(key, (L1Error.OUT_OF_MEMORY, None))
        reserved = [key for key, (_, obj) in found.items() if obj is not None]
        if needed:
            self._events.write_reserved(reserved, tag)
        return found

    def _writable(
        self,
        keys: Sequence[ObjectKey],
        is_temporary: Sequence[bool],
        tag: str,
        found: dict[ObjectKey, L1OperationResult],
    ) -> list[tuple[int, ObjectKey, bool]]:
        """Which keys need a slot, as (index, key, temporary); what is decided goes to ``found``."""
        needed = []
        for index, (key, resident) in enumerate(zip(keys, self._resident(keys), strict=True)):
            if key in found:
                continue
            if resident:
                found[key] = (L1Error.KEY_NOT_WRITABLE, None)
                continue
            reserved, obj = self._writes.renew(key, tag, is_temporary[index])
            if not reserved:
                needed.append((index, key, is_temporary[index]))
            elif obj is None:
                found[key] = (L1Error.KEY_NOT_WRITABLE, None)
            else:
                found[key] = (L1Error.SUCCESS, obj)
        return needed

    def finish_write(self, keys: list[ObjectKey], tag: str = "") -> dict[ObjectKey, L1Error]:
        """Publish what ``tag`` wrote: on return, every host finds it. SUCCESS also when the key
        was stored meanwhile. KEY_NOT_EXIST: nothing is reserved; KEY_IN_WRONG_STATE: the
        reservation lapsed; OUT_OF_MEMORY: the pool's index has no room."""
        if writer_vanished():
            discarded = self.finish_write_and_delete(keys, tag)
            logger.warning("an engine vanished while it wrote %d chunks: not stored", len(keys))
            return dict.fromkeys(discarded, L1Error.KEY_IN_WRONG_STATE)
        results, temporary, lasting = self._take(keys, tag)
        for key, staged in temporary:
            self._reads.adopt(key, staged.obj, 0, temporary=True)
        stored: list[ObjectKey] = []
        for (key, _), result in zip(lasting, self._publish(lasting, keep=False), strict=True):
            if result is PutResult.STORED:
                stored.append(key)
            elif result is PutResult.REFUSED:
                results[key] = L1Error.OUT_OF_MEMORY
        objs = {key: staged.obj for key, staged in lasting}
        self._events.write_finished(stored, [objs[key] for key in stored])
        return results

    def _take(
        self, keys: Sequence[ObjectKey], tag: str
    ) -> tuple[dict[ObjectKey, L1Error], list[Written], list[Written]]:
        """What became of each reservation; those that are over: of temporaries, and of others."""
        results: dict[ObjectKey, L1Error] = {}
        temporary: list[Written] = []
        lasting: list[Written] = []
        for key in keys:
            results[key], staged = self._writes.take(key, tag)
            if staged is not None:
                (temporary if staged.temporary else lasting).append((key, staged))
        return results, temporary, lasting

    def _publish(self, written: Sequence[Written], keep: bool) -> list[PutResult]:
        if not written:
            return []
        try:
            return self._memory.publish(
                [key for key, _ in written],
                [staged.obj for _, staged in written],
                [staged.depth for _, staged in written],
                keep,
            )
        except Exception as error:
            self._failed("store", error)
            return [PutResult.REFUSED] * len(written)

    def finish_write_and_reserve_read(
        self, keys: list[ObjectKey], read_locks: int = 1, tag: str = ""
    ) -> dict[ObjectKey, L1OperationResult]:
        """As finish_write, and lock what readers see from now on."""
        locks = validate_read_locks(read_locks)
        errors, temporary, lasting = self._take(keys, tag)
        results: dict[ObjectKey, L1OperationResult] = {k: (e, None) for k, e in errors.items()}
        mine: list[Written] = []
        others: list[ObjectKey] = []  # that were there first
        for key, staged in temporary:
            if self._reads.holds(key):
                self._memory.release(staged.obj)
                others.append(key)
            else:
                mine.append((key, staged))
        for (key, staged), result in zip(lasting, self._publish(lasting, keep=True), strict=True):
            if result is PutResult.STORED:
                mine.append((key, staged))
            elif result is PutResult.DUPLICATE:
                others.append(key)
            else:
                results[key] = (L1Error.OUT_OF_MEMORY, None)
        objs = [self._reads.adopt(k, s.obj, locks, s.temporary) for k, s in mine]
        stored = [key for key, _ in mine]
        results.update((key, (L1Error.SUCCESS, obj)) for key, obj in zip(stored, objs, strict=True))
        if others:
            results.update(self.reserve_read(others, locks))
        self._events.write_finished_and_read_reserved(stored, objs)
        return results

    def finish_write_and_delete(
        self, keys: list[ObjectKey], tag: str = ""
    ) -> dict[ObjectKey, L1Error]:
        """Give the slots that ``tag`` reserved back; nothing becomes resident. KEY_NOT_EXIST;
        KEY_IN_WRONG_STATE: the reservation lapsed."""
        results: dict[ObjectKey, L1Error] = {}
        ended: list[ObjectKey] = []
        for key in keys:
            results[key], staged = self._writes.take(key, tag)
            if staged is not None:
                self._memory.release(staged.obj)
                ended.append(key)
        self._say_never_written(ended)
        return results

    def _say_never_written(self, keys: Iterable[ObjectKey]) -> None:
        gone = [key for key in keys if key not in self._writes]
        try:
            there = self._resident(gone)
        except Exception as error:
            self._failed("lookup", error)
            return
        self._events.never_written(
            [key for key, is_there in zip(gone, there, strict=True) if not is_there]
        )

    # Removal

    def delete(self, keys: list[ObjectKey], force: bool = False) -> dict[ObjectKey, L1Error]:
        """Remove chunks from the pool, for every host. KEY_NOT_EXIST; KEY_IS_LOCKED: this server
        reads or writes it, unless ``force``. Who reads one, here or elsewhere, keeps its bytes."""
        results: dict[ObjectKey, L1Error] = {}
        removed: list[ObjectKey] = []
        try:
            lapsed = self._writes.reclaim(keys, force)
            self._release_all(lapsed)
            for key, present in zip(keys, self._resident(keys), strict=True):
                if key in self._writes or (not force and self._reads.locked(key)):
                    results[key] = L1Error.KEY_IS_LOCKED
                elif present:
                    results[key] = L1Error.SUCCESS
                    removed.append(key)
                else:
                    results[key] = L1Error.SUCCESS if key in lapsed else L1Error.KEY_NOT_EXIST
            metas = self._metas(removed)
            self._reads.forget(removed)
            self._pool.remove(removed)
        except Exception as error:
            self._failed("remove", error)
            for key in keys:
                results.setdefault(key, L1Error.KEY_NOT_EXIST)
            return results
        self._events.deleted(removed, metas)
        self._events.never_written([key for key in lapsed if key not in removed])
        return results

    def _metas(self, keys: Sequence[ObjectKey]) -> list[L1ObjectMeta]:
        views = self._pool.get_batch(keys) if keys else []
        sizes = [0 if view is None else view.size for view in views]
        for view in views:
            if view is not None:
                view.release()
        return [L1ObjectMeta(size, self._backend) for size in sizes]

    def clear(self, force: bool = False) -> None:
        """Remove all chunks from the pool, also those that other engines and hosts stored there.

        Those that this server reads stay until then, unless ``force``; who reads one keeps its
        bytes in any case.
        """
        try:
            lapsed = self._writes.reclaim(force=force)
            self._release_all(lapsed)
            self._say_never_written(lapsed)
            locked = [] if force else [key for key in self._reads.all() if self._reads.locked(key)]
            self._reads.forget(set(self._reads.all()).difference(locked))
            removed = self._pool.clear()
            logger.info("cleared the pool: %d chunks of this host are gone", removed)
        except Exception as error:
            self._failed("clear", error)

    def touch_keys(self, keys: list[ObjectKey]) -> None:
        """Count the keys as used now."""
        try:
            self._pool.touch(keys)
        except Exception as error:
            self._failed("touch", error)
        self._events.accessed(keys)

    def is_key_evictable(self, key: ObjectKey) -> bool:
        """False: the pool evicts by itself."""
        return False

    # What there is

    def get_memory_usage(self) -> tuple[int, int]:
        """Bytes that cannot be evicted, since this server reads or writes them, and bytes in all.

        LMCache's eviction controller asks once a second, which also ends locks and reservations
        whose requests vanished.
        """
        self._sweep()
        return self._reads.bytes + self._writes.bytes, self._pool.info.capacity

    def get_staging_memory_usage(self) -> int:
        """Bytes of write reservations."""
        return self._writes.bytes

    def get_capacity_bytes_by_backend(self) -> dict[L1BackendType, int]:
        """The pool's payload, all hosts together."""
        return {self._backend: self._pool.info.capacity}

    def get_l1_memory_desc(self) -> None:
        """None: adapters that register the L1 as one piece of memory with a device or a network do
        not know of extents that change hands."""
        return

    def get_devdax_arena_statuses(self) -> list[Any]:
        """Raises L1ReconfigureError: devices are the pool's, and do not change."""
        raise _not_reconfigurable()

    def get_devdax_arena_status(self, device_path: str) -> Any:
        """Raises L1ReconfigureError: devices are the pool's, and do not change."""
        raise _not_reconfigurable()

    def add_devdax_device(self, device_path: str, size_in_bytes: int) -> Any:
        """Raises L1ReconfigureError: devices are the pool's, and do not change."""
        raise _not_reconfigurable()

    def remove_devdax_device(self, device_path: str, mode: Any = None) -> Any:
        """Raises L1ReconfigureError: devices are the pool's, and do not change."""
        raise _not_reconfigurable()

    def owns_device(self, device_path: str) -> bool:
        """Whether the pool lies on the file or device."""
        try:
            return any(os.path.samefile(device_path, one.path) for one in self._pool.info.devices)
        except OSError:
            return False

    def memory_region_count(self) -> int:
        """How many files or devices the pool has."""
        return len(self._pool.info.devices)

    def report_status(self) -> dict[str, Any]:
        """LMCache's figures, and under ``pool`` ours.

        Objects, locks and bytes are those that this server holds; ``pool`` has all of them.
        """
        used, total = self.get_memory_usage()
        resident = self._reads.all()
        locked = sum(map(self._reads.locked, resident))
        staged = len(self._writes)
        return {
            "is_healthy": self.memcheck(),
            "total_object_count": len(resident) + staged,
            "write_locked_count": self._writes.live(),
            "read_locked_count": locked,
            "temporary_count": self._reads.temporaries(),
            "staging_object_count": staged,
            "staging_bytes": self._writes.bytes,
            "memory_used_bytes": used,
            "memory_total_bytes": total,
            "memory_configured_bytes": total,
            "capacity_bytes_by_backend": {self._backend.value: total},
            "memory_usage_ratio": used / total,
            "write_ttl_seconds": self._config.write_ttl_seconds,
            "read_ttl_seconds": self._config.read_ttl_seconds,
            "pool": self._pool_status(),
        }

    @property
    def lost_leases(self) -> int:
        """How many leases have ended while a request held its chunk locked."""
        return self._reads.lost

    def _pool_status(self) -> dict[str, Any]:
        status: dict[str, Any] = {
            "uuid": self._pool.uuid,
            "paths": [device.path for device in self._pool.info.devices],
            "host_id": self._pool.host_id,
            "closed": self._pool.close_reason,
            **self._memory.counters,
            "bytes_registered": self._memory.registered_bytes,
            "lost_while_locked": self.lost_leases,
        }
        try:
            status["host"] = self._pool.stats()
        except Exception as error:
            self._failed("statistics", error)
        return status

    def memcheck(self) -> bool:
        """Whether the pool is still there."""
        return not self._pool.closed

    def close(self) -> None:
        """Detach from the pool. Chunks stay in it; locks and reservations end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._lends:
            self._pool.close()  # first, so that what engines are copying stays theirs
        self._reads.close()
        for obj in self._writes.close():
            self._memory.release(obj)
        self._memory.close()
        self._pool.close()

    # Trouble, and what is asked in several places

    def _present(self, keys: Sequence[ObjectKey]) -> list[bool]:
        return self._pool.contains(keys) if keys else []

    def _resident(self, keys: Sequence[ObjectKey]) -> list[bool]:
        present = self._present(keys)
        return [there or self._reads.holds(key) for key, there in zip(keys, present, strict=True)]

    def _absent_or(
        self, found: dict[ObjectKey, L1OperationResult], otherwise: L1Error
    ) -> dict[ObjectKey, L1OperationResult]:
        """Tells keys that are in the pool, but not locked here, from those that are not there."""
        absent = [key for key, (error, _) in found.items() if error is L1Error.KEY_NOT_EXIST]
        for key, present in zip(absent, self._present(absent), strict=True):
            if present:
                found[key] = (otherwise, None)
        return found

    def _sweep(self) -> None:
        if self._reads.sweep():
            lapsed = self._writes.reclaim(overdue_s=ABANDONED_S)
            self._release_all(lapsed)
            self._say_never_written(lapsed)

    def _release_all(self, objs: dict[ObjectKey, list[MemoryObj]]) -> None:
        for several in objs.values():
            for obj in several:
                self._memory.release(obj)

    def _failed(self, operation: str, error: Exception) -> None:
        if not self._closed:
            self._trouble.failed(operation, error)


def _not_reconfigurable() -> L1ReconfigureError:
    return L1ReconfigureError(
        409, "the L1 is a pool of lmcache-beluga, whose files and devices are fixed when it is made"
    )


def _private(config: L1MemoryManagerConfig) -> L1MemoryManagerConfig:
    # LMCache removes what has the name of its shared memory before it makes its own: the pool.
    return dataclasses.replace(config, shm_name="", use_lazy=False)
