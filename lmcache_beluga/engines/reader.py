"""Gets chunks out of the pool as LMCache's memory objects: views under lease, or copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lmcache.v1.memory_management import BytesBufferMemoryObj, MemoryFormat, MemoryObj

from lmcache_beluga.engines.allocator import PoolAllocator
from lmcache_beluga.engines.layout import LayoutCodec
from lmcache_beluga.engines.trouble import TroubleLog, logger

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

    from lmcache_beluga.engines.engine_reach import EngineReach
    from lmcache_beluga.pool import Pool, View


class ChunkReader:
    """Reads runs of chunks from the beginning of a prompt; ends at the first that is missing."""

    def __init__(
        self,
        pool: Pool,
        codec: LayoutCodec,
        allocator: PoolAllocator,
        trouble: TroubleLog,
        reach: EngineReach,
    ) -> None:
        self._pool = pool
        self._codec = codec
        self._allocator = allocator
        self._trouble = trouble
        self._reach = reach

    def views(self, keys: Sequence[CacheEngineKey]) -> list[MemoryObj]:
        """Objects over the pool's own bytes for the longest present prefix of ``keys``, as far as
        the GPU can reach them, if it is for a GPU.

        Each holds a lease until LMCache drops its last reference.
        """
        unpack = self._codec.unpack
        over = self._allocator.over
        objs: list[MemoryObj] = []
        views = self._pool.get_prefix(keys)
        try:
            for view in views:
                layout = unpack(view.meta, view.size)
                if layout.fmt is MemoryFormat.BINARY_BUFFER:
                    objs.append(BytesBufferMemoryObj(view.array.tobytes()))
                    view.release()
                elif self._reach.covers(view):
                    objs.append(over(view, layout))
                else:
                    for rest in views[len(objs) :]:
                        rest.release()
                    break
        except ValueError as error:
            self._say_unreadable(error)
            for view in views[len(objs) :]:
                view.release()
        return objs

    def copies(self, keys: Sequence[CacheEngineKey], local_cpu: LocalCPUBackend) -> list[MemoryObj]:
        """The same in memory of LMCache's CPU backend, whose hot cache may keep it for ever."""
        objs: list[MemoryObj] = []
        views = self._pool.get_prefix(keys)
        try:
            for view in views:
                obj = self._copy(view, local_cpu)
                if obj is None:
                    break
                objs.append(obj)
        except ValueError as error:
            self._say_unreadable(error)
        finally:
            for view in views:
                view.release()
        return objs

    def _copy(self, view: View, local_cpu: LocalCPUBackend) -> MemoryObj | None:
        layout = self._codec.unpack(view.meta, view.size)
        if layout.fmt is MemoryFormat.BINARY_BUFFER:
            return BytesBufferMemoryObj(view.array.tobytes())
        # Not busy_loop: that waits without end when the prompt is larger than LMCache's memory.
        obj = local_cpu.allocate(
            list(layout.shapes), list(layout.dtypes), layout.fmt, busy_loop=False
        )
        if obj is None:
            if times := self._trouble.due("no memory for copies"):
                logger.warning(
                    "LMCache's CPU memory had no room for %d chunks from the pool since last "
                    "reported: raise max_local_cpu_size, or switch the hot cache off (local_cpu: "
                    "false), which needs no copies",
                    times,
                )
            return None
        obj.metadata.cached_positions = layout.positions
        obj.raw_tensor[: view.size].copy_(torch.from_numpy(view.array))
        # A chunk whose lease was lost meanwhile may have been overwritten while it was copied.
        if not view.valid():
            obj.ref_count_down()
            return None
        return obj

    def _say_unreadable(self, error: ValueError) -> None:
        if times := self._trouble.due("unreadable"):
            logger.warning(
                "%d chunks in the pool are not LMCache's KV and count as missing: %s", times, error
            )
