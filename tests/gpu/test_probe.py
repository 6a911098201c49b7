"""The probe of GPUs against a stand-in: what it asks, what it makes of answers and of errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from recording_runtime import RecordingRuntime

from lmcache_beluga.characterize import region
from lmcache_beluga.characterize.figures import BY_ENGINE, BY_KERNEL, FROM_GPU, LOADS, TO_GPU
from lmcache_beluga.characterize.region import Region
from lmcache_beluga.gpu import probe
from lmcache_beluga.pool import Pool

CPU = min(os.sched_getaffinity(0))
MIB = 1 << 20


class FakeGpu:
    """Copies bytes as a GPU would, and takes no time to speak of."""

    name = "gpu 0"
    what = "a stand-in"

    def __init__(self, runtime: RecordingRuntime | None = None, fail: str = "") -> None:
        self.runtime = runtime or RecordingRuntime()
        self.fail = fail
        self.own = np.zeros(0, dtype=np.uint8)
        self.released = 0

    def _may(self, what: str) -> None:
        if self.fail == what:
            raise RuntimeError(f"an illegal memory access by [{what}]")

    def _reachable(self, memory: np.ndarray) -> None:
        begin, end = memory.ctypes.data, memory.ctypes.data + memory.nbytes
        spans = self.runtime.registered.items()
        assert any(a <= begin and end <= a + n for a, n in spans), "not registered"

    def prepare(self, nbytes: int) -> None:
        self._may("prepare")
        self.own = np.zeros(nbytes, dtype=np.uint8)

    def chase(self, memory: np.ndarray, start: int, hops: int) -> tuple[float, int]:
        self._may("chase")
        self._reachable(memory)
        at = start
        for _ in range(hops):
            at = int(memory[at : at + 8].view(np.uint64)[0])
        return hops * 1.5e-6, at + (256 if self.fail == "wrong end" else 0)

    def copies(
        self, memories: Sequence[np.ndarray], *, to_gpu: bool, kernel: bool
    ) -> tuple[float, float]:
        self._may("kernel copy" if kernel else "engine copy")
        for one in memories:
            self._reachable(one)
            if to_gpu:
                self.own[: one.size] = one
            elif self.fail != "lost bytes":
                one[:] = self.own[: one.size]
        seconds = sum(one.nbytes for one in memories) / 50e9
        return seconds, seconds + 4e-6

    def release(self) -> None:
        self._may("release")
        self.released += 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SIZES", (64 << 10, MIB, 16 * MIB))
    monkeypatch.setattr(probe, "_ROUND_BYTES", 4 * MIB)


@pytest.fixture
def scratch(shm_dir: Path, small: None) -> Iterator[Region]:
    with region.scratch_file(shm_dir, 2 * MIB, CPU) as one:
        yield one


def test_all_is_measured_and_given_back(scratch: Region) -> None:
    gpu = FakeGpu()
    steps: list[str] = []
    found = probe.measure(gpu, [scratch], steps.append)
    assert all(one.value is not None for one in found)
    (load,) = [one for one in found if one.operation == LOADS]
    assert load.value == pytest.approx(1500)
    rates = {(one.operation, one.block): one.value for one in found if one.unit == "GB/s"}
    ways = [f"{where}, {how}" for where in (TO_GPU, FROM_GPU) for how in (BY_ENGINE, BY_KERNEL)]
    assert set(rates) == {(way, size) for way in ways for size in (64 << 10, MIB)}
    assert all(value == pytest.approx(50) for value in rates.values())
    alone = {one.block: one.value for one in found if one.unit == "ns" and one is not load}
    assert alone[64 << 10] == pytest.approx((64 << 10) / 50 + 4000)
    assert len(steps) == probe.step_count([scratch])
    assert gpu.runtime.registered == {}
    assert gpu.runtime.calls == ["register", "unregister"]
    assert gpu.released == 1


def test_a_pool_is_registered_by_extent(pool_path: Path, small: None) -> None:
    with Pool.open(pool_path, size=64 * MIB, extent_size=4 * MIB) as pool:
        pool.put(b"chunk", b"\x07" * 100_000)
        with region.pool_slots(pool, MIB) as places:
            gpu = FakeGpu()
            found = probe.measure(gpu, places)
            assert all(one.value is not None for one in found)
            assert gpu.runtime.registered == {}
        assert bytes(pool.get(b"chunk").array) == b"\x07" * 100_000
        refusing = FakeGpu(RecordingRuntime(refuse=0))
        with region.pool_slots(pool, MIB) as places:
            (refused,) = probe.measure(refusing, places)
        assert refused.value is None and "out of memory" in refused.note
        assert pool.inspect()["occupancy"]["writing"] == 0


@pytest.mark.parametrize(
    ("fail", "note", "lost"),
    [
        ("prepare", "illegal memory access", {LOADS}),
        ("chase", "illegal memory access", {LOADS}),
        ("wrong end", "the chain ends at", {LOADS}),
        ("engine copy", "[engine copy]", None),
        ("kernel copy", "[kernel copy]", None),
        ("lost bytes", "not what was sent", None),
        ("release", "illegal memory access", {"releasing its memory"}),
    ],
)
def test_an_error_is_a_row(scratch: Region, fail: str, note: str, lost: set[str] | None) -> None:
    gpu = FakeGpu(fail=fail)
    found = probe.measure(gpu, [scratch])
    failed = [one for one in found if one.value is None]
    assert failed
    assert all(note in one.note for one in failed)
    if lost is not None:
        assert {one.operation for one in failed} == lost
    assert gpu.runtime.registered == {}


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_DEVICES", ())
    gpus, why = probe.find_gpus()
    assert gpus == []
    assert "no GPU was measured" in why


def test_a_broken_installation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_DEVICES", ("/dev/null",))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    gpus, why = probe.find_gpus()
    assert gpus == []
    assert "cupy" in why
