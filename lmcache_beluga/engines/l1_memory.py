"""Where the objects of the shared L1 lie: in the pool, or as copies where a GPU cannot reach it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.memory_management import MemoryFormat, MemoryObj

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

    from lmcache_beluga._native import View as NativeView
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
        self, keys: Sequence[ObjectKey], views: Sequence[NativeView | None]
    ) -> list[MemoryObj | None]:
        """An object for each view, which it takes over; None where there is none."""
        unpack, covers, fits = self._codec.unpack, self._reach.covers, self._layouts.fits
        base, owner = self._base, self._owner
        objs: list[MemoryObj | None] = []
        in_place = by_copy = 0
        for key, view in zip(keys, views, strict=True):
            obj: MemoryObj | None = None
            if view is not None:
                size = view.size
                try:
                    layout = unpack(view.meta, size)
                except ValueError as error:
                    view.release()
                    self._say_unreadable(error)
                else:
                    if not fits(key, layout):
                        view.release()
                        self._say_unfit(key, layout)
                    elif covers(view):
                        obj = L1Object(view, layout, base, owner)
                        in_place += size
                    elif (obj := self._copied(view, layout)) is not None:
                        by_copy += size
            objs.append(obj)
        self._count("bytes_read_in_place", in_place)
        self._count("bytes_read_by_copy", by_copy)
        return objs

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

    def _copied(self, view: NativeView, layout: Layout) -> MemoryObj | None:
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
        hold = obj.hold
        return hold is not None and (isinstance(hold, Reservation) or hold.valid())

    def release(self, obj: MemoryObj) -> None:
        """Take an object back: its lease ends, or its slot is free again. Idempotent."""
        if isinstance(obj, L1Object):
            obj.end()
        elif self._own is not None and obj.is_valid():
            self._own.free([obj])

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
