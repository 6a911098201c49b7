"""Where probes measure: nothing that anybody has there changes, and nothing stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lmcache_beluga import Pool, _native
from lmcache_beluga.characterize import cpu, region
from lmcache_beluga.characterize.topology import nodes
from lmcache_beluga.errors import InvalidArgumentError, NotAPoolError, PoolMissingError

CPU = min(os.sched_getaffinity(0))
MIB = 1 << 20


def test_a_scratch_file_goes_away(shm_dir: Path) -> None:
    with region.scratch_file(shm_dir, 2 * MIB, CPU) as one:
        (path,) = shm_dir.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_blocks * 512 >= 2 * MIB
        assert one.memory.size == 2 * MIB
        assert one.memory.reshape(-1, 64).any(axis=1).all(), "zeros are faster on some CPUs"
        assert one.place.kind == "tmpfs" and "not what CXL" in one.place.what
    assert list(shm_dir.iterdir()) == []
    with pytest.raises(RuntimeError), region.scratch_file(shm_dir / "named", 2 * MIB, CPU):
        assert (shm_dir / "named").exists()
        raise RuntimeError
    assert list(shm_dir.iterdir()) == []


def test_a_file_that_exists_is_not_touched(shm_dir: Path) -> None:
    path = shm_dir / "precious"
    path.write_bytes(b"x" * 100)
    with pytest.raises(InvalidArgumentError, match="exists"):
        region.scratch_file(path, 2 * MIB, CPU).__enter__()
    with pytest.raises(NotAPoolError):
        region.raw_device(path, 2 * MIB, CPU).__enter__()
    assert path.read_bytes() == b"x" * 100
    assert list(shm_dir.iterdir()) == [path]


def test_a_folder_that_is_not_there(shm_dir: Path) -> None:
    with pytest.raises(PoolMissingError):
        region.scratch_file(shm_dir / "no" / "file", 2 * MIB, CPU).__enter__()


def test_a_truncated_file_is_noticed(shm_dir: Path) -> None:
    path = shm_dir / "short"
    with (
        pytest.raises(InvalidArgumentError, match="lost"),
        region.scratch_file(path, 2 * MIB, CPU) as one,
    ):
        os.truncate(path, 0)
        _native.time_blocks(one.memory, "store", 64, 10, 1, CPU)
    assert list(shm_dir.iterdir()) == []


@pytest.mark.parametrize("devices", [1, 2])
def test_chunks_are_not_touched(shm_dir: Path, devices: int, visibility: str) -> None:
    paths = [shm_dir / f"device{number}" for number in range(devices)]
    random = np.random.default_rng(1)
    chunks = {b"%d" % n: random.integers(0, 256, 50_000, dtype=np.uint8) for n in range(40)}
    with Pool.open(paths, size=32 * MIB, extent_size=2 * MIB) as pool:
        for key, data in chunks.items():
            pool.put(key, data)
        with region.pool_slots(pool, 8 * MIB) as places:
            assert [one.name for one in places] == [str(path) for path in paths]
            for one in places:
                assert one.memory.size == 2 * MIB and one.slot is not None
                first, address = one.memory.ctypes.data, one.slot.address
                assert address <= first and first + one.memory.size <= address + one.slot.size
            assert pool.inspect()["occupancy"]["writing"] == devices
            with region.dram(2 * MIB, CPU) as compare:
                for _ in cpu.measure(places, compare, nodes(), 0.3):
                    pass
            assert pool.check().ok
        assert pool.inspect()["occupancy"]["writing"] == 0
        assert pool.stats()["chunks"] == len(chunks)
        for key, data in chunks.items():
            with pool.get(key) as view:
                assert np.array_equal(view.array, data)
        assert pool.check().ok


def test_a_full_pool_evicts_nothing(pool_path: Path) -> None:
    with Pool.open(pool_path, size=32 * MIB, extent_size=2 * MIB) as pool:
        number = 0
        while pool.stats()["evictions"] == 0:
            pool.put(b"%d" % number, np.zeros(200_000, dtype=np.uint8))
            number += 1
            assert number < 1000
        before = {entry.record for entry in pool.keys()}  # noqa: SIM118
        with region.pool_slots(pool, 2 * MIB) as places:
            assert places == []
        assert {entry.record for entry in pool.keys()} == before  # noqa: SIM118


def test_slots_come_back_when_a_probe_fails(pool_path: Path) -> None:
    with Pool.open(pool_path, size=32 * MIB) as pool:
        with pytest.raises(RuntimeError), region.pool_slots(pool, MIB) as places:
            assert places
            raise RuntimeError
        assert pool.inspect()["occupancy"]["writing"] == 0


def test_what_is_a_pool(shm_dir: Path) -> None:
    paths = [str(shm_dir / "a"), str(shm_dir / "b")]
    Pool.format(paths, size=16 * MIB)
    assert region.is_pool(paths)
    assert not region.is_pool(list(reversed(paths)))
    (shm_dir / "other").write_bytes(b"no pool" * 1000)
    assert not region.is_pool([str(shm_dir / "other")])


def test_page_sizes(tmp_path: Path) -> None:
    smaps = tmp_path / "smaps"
    smaps.write_text(
        "1000-3000 rw-p 00000000 00:00 0\nRss:  8 kB\nKernelPageSize:  4 kB\n"
        "200000-600000 rw-s 00000000 00:01 7 /dev/shm/x\nRss:  4096 kB\n"
        "ShmemPmdMapped:  4096 kB\nKernelPageSize:  4 kB\n"
        "40000000-80000000 rw-s 00000000 00:06 9 /dev/dax0.0\nRss:  0 kB\n"
        "KernelPageSize:  2048 kB\n"
    )
    assert region.page_bytes(0x2000, smaps) == 4096
    assert region.page_bytes(0x200000, smaps) == 2 * MIB
    assert region.page_bytes(0x40000000, smaps) == 2 * MIB
    assert region.page_bytes(0x90000000, smaps) == 0
    assert region.page_bytes(0, tmp_path / "missing") == 0
