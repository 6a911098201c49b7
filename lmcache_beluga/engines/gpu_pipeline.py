"""Chunks between the pool and LMCache's paged KV by way of the GPU's memory, one behind the other.

LMCache's connectors let a kernel reach over the bus, chunk by chunk, and wait after each that they
store. Here the GPU's copy engine moves whole chunks over the bus, while a kernel of the connector
spreads or gathers the one before within the GPU's memory:

    load    pool --copy engine--> stage --connector's kernel--> paged KV
    store   paged KV --connector's kernel--> stage --copy engine--> pool

On an H200, kernels reach 50 of the 55 GB/s that its copy engine gets out of the bus, and leave
fewer of its processors to decodes that run meanwhile.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lmcache.v1.memory_management import MemoryObj, TensorMemoryObj

from lmcache_beluga.engines.trouble import logger

if TYPE_CHECKING:
    from lmcache_beluga.engines.memory_obj import PoolMemoryObj

DEPTH = 3
"""Stages: one for the copy engine, one for the kernel, and one for the host to prepare."""

SMALLEST = 1 << 20
"""Bytes of the smallest chunk for which two more launches cost less than they save."""


class _Stage:
    """One chunk's room in the GPU's memory."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.filled = torch.cuda.Event()
        self.emptied = torch.cuda.Event()

    def holding(self, obj: PoolMemoryObj) -> TensorMemoryObj:
        """What LMCache takes for ``obj``, in the GPU's memory."""
        metadata = dataclasses.replace(obj.metadata, address=self.bytes.data_ptr())
        return TensorMemoryObj(self.bytes[: obj.get_size()], metadata, None)


class GpuPipeline:
    """Moves the chunks of one prompt at a time; made for one GPU, used by its connectors."""

    def __init__(self, device: int) -> None:
        self._device = torch.device("cuda", device)
        self._lock = threading.Lock()
        self._copies: torch.cuda.Stream | None = None
        self._stages: list[_Stage] = []
        self._refused_above: int | None = None

    def takes(self, objs: Sequence[MemoryObj]) -> bool:
        """Whether it moves these, rather than the connector by itself."""
        largest = max((obj.get_size() for obj in objs), default=0)
        if largest < SMALLEST:
            return False
        return self._refused_above is None or largest < self._refused_above

    def load(
        self,
        connector: Any,
        objs: Sequence[PoolMemoryObj],
        starts: Sequence[int],
        ends: Sequence[int],
        **kwargs: Any,
    ) -> bool:
        """As the connector's ``batched_to_gpu``: on return the paged KV has every chunk.

        False when the GPU has no memory for the stages; nothing was done then.
        """
        with self._lock, torch.cuda.device(self._device):
            stages = self._stages_for(objs)
            if stages is None or self._copies is None:
                return False
            copies, kernels = self._copies, connector.load_stream
            kwargs = _told_once(connector, kwargs)
            with _waiting_for(copies, kernels):
                for stage, obj, start, end in zip(stages, objs, starts, ends, strict=False):
                    chunk = obj.bytes_in_use
                    with torch.cuda.stream(copies):
                        copies.wait_event(stage.emptied)
                        stage.bytes[: chunk.nbytes].copy_(chunk, non_blocking=True)
                        stage.filled.record(copies)
                    with torch.cuda.stream(kernels):
                        kernels.wait_event(stage.filled)
                        connector.to_gpu(stage.holding(obj), start, end, **kwargs)
                        stage.emptied.record(kernels)
            return True

    def store(
        self,
        connector: Any,
        objs: Sequence[PoolMemoryObj],
        starts: Sequence[int],
        ends: Sequence[int],
        **kwargs: Any,
    ) -> bool:
        """As the connector's ``batched_from_gpu``: on return every chunk is in its slot.

        False when the GPU has no memory for the stages; nothing was done then.
        """
        with self._lock, torch.cuda.device(self._device):
            stages = self._stages_for(objs)
            if stages is None or self._copies is None:
                return False
            copies, kernels = self._copies, connector.store_stream
            kwargs = _told_once(connector, kwargs)
            kernels.wait_stream(torch.cuda.current_stream())
            with _waiting_for(kernels, copies):
                for stage, obj, start, end in zip(stages, objs, starts, ends, strict=False):
                    chunk = obj.bytes_in_use
                    staged = stage.holding(obj)
                    kernels.wait_event(stage.emptied)
                    connector.from_gpu(staged, start, end, **kwargs)
                    stage.filled.record(kernels)
                    obj.metadata.fmt = staged.metadata.fmt
                    with torch.cuda.stream(copies):
                        copies.wait_event(stage.filled)
                        chunk.copy_(stage.bytes[: chunk.nbytes], non_blocking=True)
                        stage.emptied.record(copies)
            return True

    def _stages_for(self, objs: Sequence[MemoryObj]) -> Iterator[_Stage] | None:
        """The stages in turn, without end; None when the GPU has no memory for them."""
        largest = max(obj.get_size() for obj in objs)
        if not self._stages or self._stages[0].bytes.nbytes < largest:
            self._stages.clear()
            try:
                self._stages = [_Stage(largest, self._device) for _ in range(DEPTH)]
                self._copies = self._copies or torch.cuda.Stream()
            except torch.cuda.OutOfMemoryError:
                self._refused_above = largest
                logger.warning(
                    "the GPU has no %d bytes left, so that LMCache moves chunks by itself, which "
                    "is slower: lower vLLM's gpu_memory_utilization",
                    DEPTH * largest,
                )
                return None
        return _round_and_round(self._stages)


def _told_once(connector: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the connector, which knows the paged KV from now on.

    It would look at the strides of every layer again with each chunk that is given it along: 0.3 ms
    for 32 layers, half of what the bus takes for a chunk of 32 MiB.
    """
    connector.initialize_kvcaches_ptr(**kwargs)
    return {name: value for name, value in kwargs.items() if name != "kvcaches"}


def _round_and_round(stages: list[_Stage]) -> Iterator[_Stage]:
    while True:
        yield from stages


class _waiting_for:
    """Waits for streams at the end, also after an error: slots must not be given back before."""

    def __init__(self, *streams: Any) -> None:
        self._streams = streams

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.synchronize()
