"""One transfer between LMCache's paged KV and chunks of the pool, and the verdict after it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lmcache_beluga.engines.memory_obj import PoolMemoryObj

if TYPE_CHECKING:
    from lmcache.v1.memory_management import MemoryObj

    from lmcache_beluga.engines.allocator import PoolAllocator
    from lmcache_beluga.engines.gpu_pipeline import GpuPipeline

Move = Callable[..., None]


class Verdict(threading.local):
    """What a retrieve of this thread has to take back: LMCache asks for it when it is done."""

    def __init__(self) -> None:
        self.awaited = False
        self.first_lost: int | None = None

    def lost(self, start: int) -> None:
        """The chunk from token ``start`` on was not, or no longer, what it was taken for."""
        self.first_lost = start if self.first_lost is None else min(start, self.first_lost)


def allocator_of(objs: Sequence[MemoryObj]) -> PoolAllocator | None:
    """The allocator that all of ``objs`` are from; None when there is none, or it is not hooked."""
    if not objs or not all(isinstance(obj, PoolMemoryObj) for obj in objs):
        return None
    parent = objs[0].parent()
    return parent if parent.hooked and all(obj.parent() is parent for obj in objs) else None


def load(
    allocator: PoolAllocator,
    verdict: Verdict,
    stock: Move,
    connector: Any,
    objs: Sequence[PoolMemoryObj],
    starts: Sequence[int],
    ends: Sequence[int],
    **kwargs: Any,
) -> None:
    """Copies chunks to the paged KV, then looks at each lease again, if somebody asks for it.

    SYNC POINT: after transfer. The copies are complete; a lease that still holds now held while
    they ran.
    """
    pipeline = _pipeline(allocator, objs)
    if pipeline is None or not pipeline.load(connector, objs, starts, ends, **kwargs):
        stock(connector, objs, starts, ends, **kwargs)
    if verdict.awaited:
        for obj, start in zip(objs, starts, strict=False):
            if not allocator.judge(obj):
                verdict.lost(start)


def store(
    allocator: PoolAllocator,
    stock: Move,
    connector: Any,
    objs: Sequence[PoolMemoryObj],
    starts: Sequence[int],
    ends: Sequence[int],
    **kwargs: Any,
) -> None:
    """Copies paged KV to slots; on return all of it is there, and a slot may be committed."""
    pipeline = _pipeline(allocator, objs)
    if pipeline is None or not pipeline.store(connector, objs, starts, ends, **kwargs):
        stock(connector, objs, starts, ends, **kwargs)


def _pipeline(allocator: PoolAllocator, objs: Sequence[PoolMemoryObj]) -> GpuPipeline | None:
    """What moves these; None: the connector by itself."""
    pipeline = allocator.pipeline
    return pipeline if pipeline is not None and pipeline.takes(objs) else None
