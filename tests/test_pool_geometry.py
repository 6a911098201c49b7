"""How a pool is cut: waste, sizes side by side, sparse files, several devices."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmcache_beluga import Pool, PutResult

pytestmark = pytest.mark.usefixtures("visibility")

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def stored_bytes(*paths: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([64 * KIB, 256 * KIB, MIB]), st.sampled_from([1, 4, 64]), st.data())
@example(64 * KIB, 1, None)
def test_waste_is_bounded(pool_path: Path, extent: int, hint: int, data: st.DataObject) -> None:
    """From the smallest slot to an eighth of an extent, an extent of equal chunks is 7/8 full."""
    with Pool.open(pool_path, size=4 * MIB, extent_size=extent, chunk_hint=hint * KIB) as pool:
        low, high = pool.info.min_slot, extent // 8
        size = low if data is None else data.draw(st.integers(low, high), label="size")
        assert pool.put(b"key", bytes(size)) is PutResult.STORED
        (cut,) = pool.inspect()["occupancy"]["cuts"]
        assert cut["slot_size"] >= size
        assert cut["slot_size"] * cut["slots"] <= extent
        assert cut["slots"] * size >= extent * 7 / 8
    pool_path.unlink()


def test_a_full_pool_holds_what_it_should(pool_path: Path) -> None:
    """The bound holds for the pool, not only for one extent of it."""
    size = 100_001
    with Pool.open(pool_path, size=32 * MIB, extent_size=MIB, chunk_hint=64 * KIB) as pool:
        for i in range(1000):
            pool.put(b"%d" % i, bytes(size))
        stats = pool.stats()
        assert stats["evictions"] > 0
        assert stats["bytes_used"] >= pool.info.capacity * 7 / 8
        assert stats["bytes_used"] == stats["chunks"] * size
        assert pool.check().ok


def test_models_and_layouts_side_by_side(pool_path: Path) -> None:
    """Whole chunks, layers of them, and the odd partial chunk share a pool without evicting."""
    sizes = {b"llama": 700_000, b"llama layer": 43_750, b"mla": 166_400, b"tail": 21_000}
    with Pool.open(pool_path, size=128 * MIB, extent_size=8 * MIB, chunk_hint=32 * KIB) as pool:
        chunks = {
            b"%s %d" % (model, i): bytes([i + len(model)]) * size
            for i in range(12)
            for model, size in sizes.items()
        }
        for key, data in chunks.items():
            assert pool.put(key, data) is PutResult.STORED
        assert all(pool.contains(list(chunks)))
        for key, data in chunks.items():
            assert pool.get(key).array.tobytes() == data
        assert pool.stats()["evictions"] == 0
        cuts = pool.inspect()["occupancy"]["cuts"]
        assert sorted(cut["used"] for cut in cuts) == [12, 12, 12, 12]
        for cut in cuts:
            assert cut["waste_ratio"] <= 0.125
        assert pool.check().ok


def test_an_extent_that_is_not_used_any_more_is_cut_for_another_size(pool_path: Path) -> None:
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB, chunk_hint=64 * KIB) as pool:
        small = [b"small %d" % i for i in range(pool.info.extents * 16)]
        assert set(pool.put_batch(small, [bytes(60_000)] * len(small))) == {PutResult.STORED}
        assert pool.stats()["extents_free"] == 0
        assert pool.remove(small) == len(small)
        large = [b"large %d" % i for i in range(pool.info.extents)]
        assert set(pool.put_batch(large, [b"x" * MIB] * len(large))) == {PutResult.STORED}
        stats = pool.stats()
        assert (stats["evictions"], stats["chunks"]) == (0, len(large))
        assert pool.get(large[3]).array.tobytes() == b"x" * MIB
        (cut,) = pool.inspect()["occupancy"]["cuts"]
        assert cut["slot_size"] == MIB
        assert pool.check().ok


def test_cold_chunks_of_another_size_make_way(pool_path: Path) -> None:
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB, chunk_hint=64 * KIB) as pool:
        small = [b"small %d" % i for i in range(pool.info.extents * 16)]
        pool.put_batch(small, [bytes(60_000)] * len(small))
        for i in range(pool.info.extents * 2):
            assert pool.put(b"large %d" % i, b"%3d" % i * 100_000) is PutResult.STORED
            assert pool.get(b"large %d" % i).array.tobytes() == b"%3d" % i * 100_000
        assert pool.check().ok


def test_clear_gives_memory_back(pool_path: Path) -> None:
    with Pool.open(pool_path, size=64 * MIB, extent_size=4 * MIB) as pool:
        empty = stored_bytes(pool_path)
        keys = [b"%d" % i for i in range(30)]
        pool.put_batch(keys, [bytes(MIB)] * 30)
        assert stored_bytes(pool_path) >= empty + 30 * MIB
        with pool.get(keys[0]) as view:
            assert pool.clear() == 30
            # Its extent stays as long as it is leased; the others are given back at once.
            assert view.valid()
            assert stored_bytes(pool_path) < empty + 10 * MIB
            assert pool.stats()["extents_owned"] == 1
        pool.put(b"again", bytes(MIB))
        assert pool.get(b"again").array.tobytes() == bytes(MIB)
        assert pool.check().ok


def test_a_sparse_pool_of_terabytes(pool_path: Path) -> None:
    """Format and attach look at metadata that is in use, and at no payload."""
    info = Pool.format(pool_path, size=8 * TIB)
    assert info.capacity > 7.9 * TIB
    formatted = stored_bytes(pool_path)
    assert formatted < 512 * MIB
    assert stored_from(pool_path, info.metadata_bytes) == 0
    with Pool.attach(pool_path) as pool:
        assert stored_bytes(pool_path) <= formatted + MIB
        assert stored_from(pool_path, info.metadata_bytes) == 0
        assert not pool.contains([b"key"])[0]
        assert pool.put(b"key", b"x" * 3 * MIB) is PutResult.STORED
        assert pool.get(b"key").array.tobytes() == b"x" * 3 * MIB
        assert stored_from(pool_path, info.metadata_bytes) < 64 * MIB
    with Pool.attach(pool_path) as pool:
        assert pool.get(b"key").array.tobytes() == b"x" * 3 * MIB
        pool.clear()
        assert stored_from(pool_path, info.metadata_bytes) == 0


def stored_from(path: Path, offset: int) -> int:
    """Bytes of data from an offset on, up to a GiB: holes do not count."""
    total = 0
    with path.open("rb") as file:
        while total < GIB:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            offset = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += offset - start
    return total


def test_consecutive_chunks_lie_on_different_devices(shm_dir: Path) -> None:
    """A prefix draws on all devices at once."""
    paths = [shm_dir / f"device{i}" for i in range(3)]
    with Pool.open(paths, size=8 * MIB, extent_size=MIB) as pool:
        first = [sum(d.extents for d in pool.info.devices[:i]) for i in range(4)]
        assert first[3] == pool.info.extents
        keys = [b"%d" % i for i in range(12)]
        pool.put_batch(keys, [b"%d" % i * 20_000 for i in range(12)])
        device = {
            int(entry.record): max(d for d in range(3) if first[d] <= entry.extent)
            for entry in pool.keys()  # noqa: SIM118
        }
        assert len({device[i] for i in range(3)}) == 3
        assert all(device[i] == device[i % 3] for i in range(12))
        assert all(stored_bytes(path) >= 80_000 for path in paths)
    with Pool.attach(paths) as pool:
        assert [view.array.tobytes() for view in pool.get_prefix(keys)] == [
            b"%d" % i * 20_000 for i in range(12)
        ]
        for i in range(100):
            pool.put(b"more %d" % i, bytes(900_000))
        assert pool.stats()["extents_free"] == 0  # of whichever device
        assert pool.check().ok


# ---- what may stand behind a pool


def mounted_hugetlbfs() -> list[Path]:
    """Directories on hugetlbfs in which this user may make a pool of a few free huge pages."""
    with open("/proc/meminfo") as meminfo:
        free = next(int(line.split()[1]) for line in meminfo if line.startswith("HugePages_Free"))
    with open("/proc/mounts") as mounts:
        points = [line.split()[1] for line in mounts if line.split()[2] == "hugetlbfs"]
    return [Path(p) for p in points if free >= 16 and os.access(p, os.W_OK)]


def storages() -> dict[str, Path]:
    """What this machine has to put a pool on."""
    found = {"tmpfs": Path("/dev/shm")}
    for name in ("/var/tmp", "/tmp", "."):
        kind = subprocess.run(["stat", "-f", "-c", "%T", name], capture_output=True, text=True)
        if kind.stdout.strip() not in ("tmpfs", "ramfs", "hugetlbfs", "") and os.access(
            name, os.W_OK
        ):
            found["file"] = Path(name)
            break
    for directory in mounted_hugetlbfs():
        found["hugetlbfs"] = directory
    return found


@pytest.fixture(params=storages().items(), ids=lambda item: item[0])
def storage(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    kind, directory = request.param
    path = directory / f"beluga-test-{os.getpid()}-{uuid.uuid4().hex[:12]}.pool"
    yield kind, path
    path.unlink(missing_ok=True)


def test_a_pool_on_whatever_the_machine_has(storage: tuple[str, Path]) -> None:
    kind, path = storage
    keys = [b"%d" % i for i in range(20)]
    data = [b"%2d" % i * 100_000 for i in range(20)]
    with Pool.open(path, size=32 * MIB, extent_size=4 * MIB) as pool:
        assert pool.info.devices[0].kind == kind
        assert set(pool.put_batch(keys, data)) == {PutResult.STORED}
        assert [view.array.tobytes() for view in pool.get_prefix(keys)] == data
        assert pool.check().ok
    with Pool.attach(path, prefault=True) as pool:
        assert [view.array.tobytes() for view in pool.get_prefix(keys)] == data
        if kind != "hugetlbfs":
            assert stored_bytes(path) >= pool.info.capacity
        pool.clear()
        if kind != "hugetlbfs":
            assert stored_bytes(path) < pool.info.capacity
        assert set(pool.put_batch(keys, data)) == {PutResult.STORED}
        assert pool.check().ok
