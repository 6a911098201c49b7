"""The probe on a real GPU. Skipped without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lmcache_beluga.characterize import region
from lmcache_beluga.gpu import probe
from lmcache_beluga.pool import Pool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CPU = min(os.sched_getaffinity(0))
MIB = 1 << 20


def test_pool_and_dram(pool_path: Path) -> None:
    gpus, why = probe.find_gpus()
    assert gpus, why
    with (
        Pool.open(pool_path, size=1024 * MIB, extent_size=64 * MIB) as pool,
        region.pool_slots(pool, 64 * MIB) as places,
        region.dram(64 * MIB, CPU) as compare,
    ):
        for gpu in gpus:
            found = probe.measure(gpu, [*places, compare])
            assert [one.note for one in found if one.value is None] == []
            assert {one.place for one in found} == {str(pool_path), "local DRAM"}
            for one in found:
                print(f"{one.place} {one.operation} {one.block}: {one.value:.4g} {one.unit}")
    assert float(torch.ones(8, device="cuda").sum()) == 8, "no error is left behind"
