"""Puts LMCache's memory objects into the pool: in place if they lie in a slot, else by one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmcache.v1.memory_management import MemoryObj

from lmcache_beluga.engines.allocator import PoolAllocator
from lmcache_beluga.engines.layout import LayoutCodec
from lmcache_beluga.engines.memory_obj import PoolMemoryObj
from lmcache_beluga.engines.payload import payload
from lmcache_beluga.engines.refusals import say_refused
from lmcache_beluga.engines.trouble import TroubleLog
from lmcache_beluga.pool import Pool, PutResult, Reservation

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey


class ChunkWriter:
    """Stores memory objects under keys; LMCache's objects stay LMCache's."""

    def __init__(
        self, pool: Pool, codec: LayoutCodec, allocator: PoolAllocator, trouble: TroubleLog
    ) -> None:
        self._pool = pool
        self._codec = codec
        self._allocator = allocator
        self._trouble = trouble

    def put(
        self, keys: Sequence[CacheEngineKey], objs: Sequence[MemoryObj], first_depth: int
    ) -> list[PutResult]:
        """Store each object under its key, the first at ``first_depth`` in its prompt.

        Keys that the pool has are left as they are. Raises BelugaError when the pool is gone.
        """
        results: list[PutResult] = []
        begin = 0
        for index, obj in enumerate(objs):
            slot = self._slot_of(obj)
            if slot is not None:
                results += self._copy(keys[begin:index], objs[begin:index], first_depth + begin)
                results.append(self._commit(slot, keys[index], obj, first_depth + index))
                begin = index + 1
        results += self._copy(keys[begin:], objs[begin:], first_depth + begin)
        if refused := results.count(PutResult.REFUSED):
            say_refused(self._pool, self._trouble, refused)
        return results

    def _slot_of(self, obj: MemoryObj) -> Reservation | None:
        if isinstance(obj, PoolMemoryObj) and obj.parent() is self._allocator:
            hold = obj.hold
            return hold if isinstance(hold, Reservation) else None
        return None

    def _commit(
        self, slot: Reservation, key: CacheEngineKey, obj: PoolMemoryObj, depth: int
    ) -> PutResult:
        # LMCache and other backends may go on reading the object whatever comes of the put. So what
        # is there already is left alone, with the slot, and a commit turns the right to write the
        # slot into a lease on the chunk.
        if self._pool.is_duplicate(key):
            return PutResult.DUPLICATE
        result, view = slot.commit_view(
            key, meta=self._codec.pack(obj), depth=depth, size=obj.get_size()
        )
        if view is None:
            # The slot is gone: another process stored the key at the same moment (its chunk has the
            # same bytes), or there was no room in the index.
            view = self._pool.get(key)
        if view is not None and view.size == obj.get_size():
            self._allocator.keep_reading(obj, view)
        else:
            obj.invalidate()
        return result

    def _copy(
        self, keys: Sequence[CacheEngineKey], objs: Sequence[MemoryObj], first_depth: int
    ) -> list[PutResult]:
        if not keys:
            return []
        sources = [payload(obj) for obj in objs]
        return self._pool.put_batch(
            keys,
            [data for data, _ in sources],
            metas=[self._codec.pack(obj) for obj in objs],
            first_depth=first_depth,
        )
