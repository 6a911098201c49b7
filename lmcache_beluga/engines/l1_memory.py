"""Where the objects of the shared L1 lie: in the pool, or as copies where a GPU cannot reach it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.memory_management import MemoryFormat, MemoryObj

from lmcache_beluga._native import View
from lmcache_beluga.engines.l1_object import L1Object
from lmcache_beluga.engines.layout import Layout, LayoutCodec
from lmcache_beluga.engines.trouble import TroubleLog, logger
from lmcache_beluga.errors import BelugaError
from lmcache_beluga.pool import PutResult
from lmcache_beluga.reservation import Reservation

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.memory_manager import L1MemoryManager

    from lmcache_beluga.engines.l1_layouts import EngineLayouts
    from lmcache_beluga.engines.l1_reach import ServerReach
    from lmcache_beluga.pool import Pool

# As LMCache's own L1 has it, which does not say.
FORMAT = MemoryFormat.KV_2LTD

COUNTERS = (
    "bytes_read_in_place",
    "bytes_read_by_copy",
    "bytes_written_in_place",
    "bytes_written_by_copy",
)


class L1Memory:
    """Makes memory objects over leased chunks and over free slots, and takes them back."""

    def __init__(
        self,
        pool: Pool,
        reach: ServerReach,
        own_memory: Callable[[], L1MemoryManager],
        layouts: EngineLayouts,
        trouble: TroubleLog,
        owner: int,
    ) -> None:
        """``own_memory``: makes LMCache's own L1 memory, for copies; called when first needed."""
        self._pool = pool
        self._reach = reach
        self._make_own = own_memory
        self._own: L1MemoryManager | None = None
        self._layouts = layouts
        self._trouble = trouble
        self._owner = owner
        self._base = pool.base_address
        self._codec = LayoutCodec()
        self._lock = threading.Lock()
        self.counters = dict.fromkeys(COUNTERS, 0)
        """Bytes of objects handed out: read and written where they lie, or through a copy."""

    # Reading

    def reading(
        self, keys: Sequence[ObjectKey], views: Sequence[View | None]
    ) -> list[MemoryObj | None]:
        """An object for each view, which it takes over; None where there is none."""
        covers, base, owner = self._reach.covers, self._base, self._owner
        objs: list[MemoryObj | None] = []
        in_place = by_copy = 0
        layout: Layout | None = None
        last: tuple[object, ...] = ()
        for key, view in zip(keys, views, strict=True):
            obj: MemoryObj | None = None
            if view is not None:
                # Nearly always, a batch is of one kind.
                kind = (view.meta, view.size, key.model_name, key.kv_rank, key.object_group_id)
                if kind != last or layout is None:
                    layout, last = self._layout(key, view), kind
                if layout is None:
                    view.release()
                elif covers(view):
                    obj = L1Object(view, layout, base, owner)
                    in_place += layout.nbytes
                elif (obj := self._copied(view, layout)) is not None:
                    by_copy += layout.nbytes
            objs.append(obj)
        self._count("bytes_read_in_place", in_place)
        self._count("bytes_read_by_copy", by_copy)
        return objs

    def _layout(self, key: ObjectKey, view: View) -> Layout | None:
        """Of a chunk; None if engines here cannot use it."""
        try:
            layout = self._codec.unpack(view.meta, view.size)
        except ValueError as error:
            self._say_unreadable(error)
            return None
        if not self._layouts.fits(key, layout):
            self._say_unfit(key, layout)
            return None
        return layout

    def _say_unreadable(self, error: ValueError) -> None:
        if times := self._trouble.due("unreadable"):
            logger.warning(
                "%d chunks in the pool are not LMCache's KV and count as missing: %s", times, error
            )

    def _say_unfit(self, key: ObjectKey, layout: Layout) -> None:
        if times := self._trouble.due("unfit"):
            dtypes = ", ".join(sorted({str(dtype) for dtype in layout.dtypes}))
            logger.warning(
                "%d chunks in the pool count as missing: engines of %s elsewhere have another "
                "layout of KV (%d bytes of %s per chunk). LMCache cannot tell them apart: give the "
                "model another name where its dtype, KV cache dtype or layers differ",
                times,
                key.model_name,
                layout.nbytes,
                dtypes,
            )

    def _copied(self, view: View, layout: Layout) -> MemoryObj | None:
        try:
            obj = self._allocate_own(layout)
            if obj is None:
                return None
            obj.raw_tensor.view(torch.uint8)[: view.size].copy_(torch.from_numpy(view.array))
            # A chunk whose lease was lost may have been overwritten while it was copied.
            if view.valid():
                return obj
        finally:
            view.release()
        self.release(obj)
        return None

    # Writing

    def writing(self, desc: MemoryLayoutDesc, count: int) -> list[MemoryObj]:
        """Objects to write to, at most ``count``: fewer when there is no room for all."""
        layout = Layout.of(desc.shapes, desc.dtypes, FORMAT)
        try:
            slots = self._pool.reserve_batch(layout.nbytes, count)
        except BelugaError as error:
            self._trouble.failed("allocating in the pool", error)
            return []
        objs: list[MemoryObj] = []
        in_place = 0
        for slot in slots:
            obj: MemoryObj | None
            if self._reach.covers(slot):
                obj = L1Object(slot, layout, self._base, self._owner)
                in_place += 1
            else:
                slot.abort()
                obj = self._allocate_own(layout)
            if obj is None:
                break  # the slots that are left are given back when they are garbage: now
            objs.append(obj)
        self._count("bytes_written_in_place", in_place * layout.nbytes)
        self._count("bytes_written_by_copy", (len(objs) - in_place) * layout.nbytes)
        return objs

    def publish(
        self,
        keys: Sequence[ObjectKey],
        objs: Sequence[MemoryObj],
        depths: Sequence[int],
        keep: bool,
    ) -> list[PutResult]:
        """Store what was written under each key, for every host to find.

        With ``keep``, an object can be read afterwards if its result is STORED; else it is over.
        """
        try:
            slots = [obj for obj in objs if isinstance(obj, L1Object)]
            if len(slots) == len(objs):
                results = self._commit(keys, slots, depths, keep)
            else:
                results = [
                    self._commit([key], [obj], [depth], keep)[0]
                    if isinstance(obj, L1Object)
                    else self._put(key, obj, depth)
                    for key, obj, depth in zip(keys, objs, depths, strict=True)
                ]
        except BelugaError as error:
            self._trouble.failed("store", error)
            results = [PutResult.REFUSED] * len(keys)
        for obj, result in zip(objs, results, strict=True):
            if not (keep and result is PutResult.STORED):
                self.release(obj)
        return results

    def _commit(
        self, keys: Sequence[ObjectKey], objs: Sequence[L1Object], depths: Sequence[int], keep: bool
    ) -> list[PutResult]:
        committed = self._pool.commit_batch(
            [obj.slot for obj in objs],
            keys,
            metas=[self._codec.pack(obj) for obj in objs],
            sizes=[obj.get_size() for obj in objs],
            depths=depths,
            keep=keep,
        )
        results = []
        for obj, (result, view) in zip(objs, committed, strict=True):
            if view is not None:
                obj.becomes(view.native)
            elif keep and result is PutResult.STORED:
                result = PutResult.DUPLICATE  # removed again at once: let the caller look for it
            results.append(result)
        return results

    def _put(self, key: ObjectKey, obj: MemoryObj, depth: int) -> PutResult:
        data = (obj.data_ptr, obj.get_size())
        return self._pool.put(key, data, meta=self._codec.pack(obj), depth=depth)

    # Both

    def untouched(self, obj: MemoryObj) -> bool:
        """Whether the bytes of ``obj`` are still what they were when it was handed out."""
        if not isinstance(obj, L1Object):
            return True
        return obj.is_valid() if isinstance(obj.hold, Reservation) else obj.hold.valid()

    def all_untouched(self, objs: Sequence[MemoryObj]) -> bool:
        """Whether all of them are: False also where it takes a look at each to tell."""
        leases = _leases(objs)
        return leases is not None and View.all_valid(leases)

    def release(self, obj: MemoryObj) -> None:
        """Take an object back: its lease ends, or its slot is free again. Idempotent."""
        if isinstance(obj, L1Object):
            obj.end()
        elif self._own is not None and obj.is_valid():
            self._own.free([obj])

    def release_all(self, objs: Sequence[MemoryObj]) -> None:
        """The same for several."""
        leases = _leases(objs)
        if leases is not None:
            View.release_all(leases)
        else:
            for obj in objs:
                self.release(obj)

    def close(self) -> None:
        """When all objects were released."""
        self._reach.close()
        if self._own is not None:
            self._own.close()

    @property
    def registered_bytes(self) -> int:
        """Bytes of the pool that GPUs reach by DMA."""
        return self._reach.registered_bytes

    def _allocate_own(self, layout: Layout) -> MemoryObj | None:
        with self._lock:
            if self._own is None:
                self._own = self._make_own()
        error, objs = self._own.allocate(layout, 1)
        if error is not L1Error.SUCCESS:
            if times := self._trouble.due("no memory for copies"):
                logger.warning(
                    "this server's own memory had no room for %d copies of the pool's chunks since "
                    "last reported: raise --l1-size-gb, or let the GPU reach the pool",
                    times,
                )
            return None
        obj: MemoryObj = objs[0]
        obj.set_l1_manager(self._owner)
        return obj

    def _count(self, name: str, nbytes: int) -> None:
        if nbytes:
            with self._lock:
                self.counters[name] += nbytes


def _leases(objs: Sequence[MemoryObj]) -> list[View] | None:
    """Of objects that lie in the pool and are chunks, as nearly all are; None if any is another."""
    if set(map(type, objs)) <= {L1Object}:
        holds = [obj.hold for obj in objs]
        if set(map(type, holds)) <= {View}:
            return holds
    return None
