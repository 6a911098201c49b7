"""The order in which chunks pass through the GPU's memory, with a stand-in for CUDA's streams.

The stand-in runs everything in the order in which it was launched, and writes down what waits for
what; tests/gpu/test_cuda_pipeline.py moves real bytes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata

from lmcache_beluga.engines import gpu_pipeline
from lmcache_beluga.engines.gpu_pipeline import DEPTH, SMALLEST, GpuPipeline

SIZE = SMALLEST
CHUNKS = 2 * DEPTH + 1


class Cuda:
    """torch.cuda, which only takes notes. Streams are known by the order in which they are made."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.streams = 0
        self.events = 0
        self.entered: list[Any] = []

    def Event(self) -> Any:
        self.events += 1
        event = SimpleNamespace(number=self.events)
        event.record = lambda stream: self.log.append(("record", stream.name, event.number))
        return event

    def Stream(self, name: str = "copies") -> Any:
        stream = SimpleNamespace(name=name)
        stream.wait_event = lambda event: self.log.append(("wait", name, event.number))
        stream.wait_stream = lambda other: self.log.append(("wait stream", name, other.name))
        stream.synchronize = lambda: self.log.append(("synchronize", name))
        return stream

    def current_stream(self) -> Any:
        return self.Stream("engine")

    def stream(self, stream: Any) -> Any:
        return Entered(self.entered, stream.name)

    def device(self, device: Any) -> Any:
        return Entered(self.entered, None)


class Entered:
    def __init__(self, stack: list[Any], name: Any) -> None:
        self._stack, self._name = stack, name

    def __enter__(self) -> None:
        self._stack.append(self._name)

    def __exit__(self, *_: object) -> None:
        self._stack.pop()


class Chunk:
    """What the pipeline needs to know of a PoolMemoryObj."""

    def __init__(self, fill: int) -> None:
        self.bytes_in_use = torch.full((SIZE,), fill, dtype=torch.uint8)
        shape = torch.Size([2, 1, 1, SIZE // 2])
        self.metadata = MemoryObjMetadata(
            shape, torch.uint8, 0, SIZE, 1, 0, MemoryFormat.KV_2LTD, [shape], [torch.uint8]
        )

    def get_size(self) -> int:
        return SIZE


class Connector:
    """LMCache's connector: remembers what it was given, writes its number."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.load_stream = cuda.Stream("kernels")
        self.store_stream = cuda.Stream("kernels")
        self.loaded: list[int] = []
        self.fails_at: int | None = None
        self.told: list[Any] = []

    def initialize_kvcaches_ptr(self, **kwargs: Any) -> None:
        if "kvcaches" in kwargs:
            self.told.append(kwargs["kvcaches"])

    def to_gpu(self, obj: Any, start: int, end: int, **kwargs: Any) -> None:
        self.initialize_kvcaches_ptr(**kwargs)
        if start == self.fails_at:
            raise RuntimeError("launch failed")
        self._cuda.log.append(("kernel", self._cuda.entered[-1]))
        self.loaded.append(int(obj.tensor.view(torch.uint8).flatten()[0]))

    def from_gpu(self, obj: Any, start: int, end: int, **kwargs: Any) -> None:
        self.initialize_kvcaches_ptr(**kwargs)
        self._cuda.log.append(("kernel", "kernels"))
        obj.tensor.fill_(start)
        obj.metadata.fmt = MemoryFormat.KV_MLA_FMT


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    device = torch.device("cpu")
    names = {name: getattr(torch, name) for name in ("uint8", "empty")}
    fake = SimpleNamespace(cuda=cuda, device=lambda *_: device, **names)
    monkeypatch.setattr(gpu_pipeline, "torch", fake)
    return cuda


def moves() -> tuple[list[Any], list[int], list[int]]:
    numbers = list(range(1, CHUNKS + 1))
    return [Chunk(number) for number in numbers], numbers, [number + 1 for number in numbers]


def steps(cuda: Cuda, stream: str) -> list[str]:
    return [entry[0] for entry in cuda.log if entry[1] == stream]


def test_a_kernel_waits_for_its_copy_and_a_copy_for_its_stage(cuda: Cuda) -> None:
    connector = Connector(cuda)
    assert GpuPipeline(0).load(connector, *moves(), slot_mapping=None)
    assert connector.loaded == list(range(1, CHUNKS + 1))
    assert steps(cuda, "copies") == ["wait", "record"] * CHUNKS + ["synchronize"]
    assert steps(cuda, "kernels") == ["wait", "kernel", "record"] * CHUNKS + ["synchronize"]
    recorded = [entry[2] for entry in cuda.log if entry[:2] == ("record", "copies")]
    assert [entry[2] for entry in cuda.log if entry[:2] == ("wait", "kernels")] == recorded
    emptied = [entry[2] for entry in cuda.log if entry[:2] == ("record", "kernels")]
    waited = [entry[2] for entry in cuda.log if entry[:2] == ("wait", "copies")]
    assert waited[DEPTH:] == emptied[: CHUNKS - DEPTH]


def test_what_is_stored_has_arrived(cuda: Cuda) -> None:
    connector = Connector(cuda)
    chunks, starts, ends = moves()
    assert GpuPipeline(0).store(connector, chunks, starts, ends)
    assert cuda.log[0] == ("wait stream", "kernels", "engine")
    assert [int(chunk.bytes_in_use[0]) for chunk in chunks] == starts
    assert all(chunk.metadata.fmt is MemoryFormat.KV_MLA_FMT for chunk in chunks)
    assert steps(cuda, "kernels")[1:-1] == ["wait", "kernel", "record"] * CHUNKS
    assert steps(cuda, "copies") == ["wait", "record"] * CHUNKS + ["synchronize"]


def test_the_connector_is_told_the_paged_kv_once(cuda: Cuda) -> None:
    """LMCache's looks at every layer whenever it is: that takes as long as half a chunk."""
    connector = Connector(cuda)
    GpuPipeline(0).load(connector, *moves(), kvcaches="layers", slot_mapping=None)
    assert connector.told == ["layers"]
    GpuPipeline(0).store(connector, *moves(), kvcaches="moved", slot_mapping=None)
    assert connector.told == ["layers", "moved"]


def test_slots_are_not_given_back_while_a_copy_runs(cuda: Cuda) -> None:
    """An error in the middle is the engine's to handle, but not before what was launched ended."""
    connector = Connector(cuda)
    connector.fails_at = 3
    pipeline = GpuPipeline(0)
    with pytest.raises(RuntimeError, match="launch failed"):
        pipeline.load(connector, *moves())
    assert cuda.log[-2:] == [("synchronize", "copies"), ("synchronize", "kernels")]
    connector.fails_at = None
    assert pipeline.load(connector, *moves())


def test_without_memory_the_connector_does_it(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(gpu_pipeline.torch, "empty", full)
    pipeline, connector = GpuPipeline(0), Connector(cuda)
    chunks, starts, ends = moves()
    assert pipeline.takes(chunks)
    assert not pipeline.load(connector, chunks, starts, ends)
    assert "gpu_memory_utilization" in caplog.text
    assert not pipeline.takes(chunks), "asking again would only cost time"


def test_small_chunks_are_the_connectors(cuda: Cuda) -> None:
    small = SimpleNamespace(get_size=lambda: SMALLEST - 1)
    assert not GpuPipeline(0).takes([small])
