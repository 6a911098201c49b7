"""``verify``: checksums of the payload. Whatever bit of it flips, no reader gets a wrong byte."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from damage import flip_bit, payload_of
from pool_layout import descriptor_of, layout_of, ready_slots

from lmcache_beluga import Pool, PutResult
from lmcache_beluga._native import View

MIB = 1 << 20
#: Less than a MiB, exactly one, and several that do not end at one.
SIZES = [1, 1000, MIB, 3 * MIB + 77]


@pytest.fixture
def pool(pool_path: Path) -> Iterator[Pool]:
    """A pool whose chunks carry checksums."""
    Pool.format(pool_path, size=64 * MIB, extent_size=8 * MIB, chunk_hint=65536)
    with Pool.attach(pool_path, verify=True, heartbeat_ms=5) as pool:
        yield pool


def payload(size: int, seed: int = 1) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng([size, seed]).integers(0, 256, size, dtype=np.uint8)


def flip(pool: Pool, key: bytes, rng: random.Random) -> None:
    """Flips a bit of a chunk's bytes, in the file."""
    path = Path(pool.info.devices[0].path)
    flip_bit(path, rng.choice(payload_of(path, key)), rng.randrange(8))


def _without_verifying(pool: Pool) -> Pool:
    return Pool.attach(pool.info.devices[0].path)


def store(
    pool: Pool, key: bytes, data: np.ndarray[tuple[int], np.dtype[np.uint8]], way: str
) -> None:
    if way == "put":
        assert pool.put(key, data) is PutResult.STORED
        return
    reservation = pool.reserve(data.size + 5)
    assert reservation is not None
    reservation.array[: data.size] = data
    if way == "commit":
        assert reservation.commit(key, size=data.size) is PutResult.STORED
    else:
        result, view = reservation.commit_view(key, size=data.size)
        assert result is PutResult.STORED and view is not None and view.valid()
        view.release()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["put", "commit", "commit_view"])
def test_what_was_stored_is_read(pool: Pool, size: int, way: str) -> None:
    data = payload(size)
    store(pool, b"key", data, way)
    with pool.get(b"key") as view:
        assert np.array_equal(view.array, data) and view.valid()
    buffer = bytearray(size)
    assert pool.read_into(b"key", buffer) == size and buffer == data.tobytes()
    stats = pool.stats()
    assert (stats["checksum_failures"], stats["unverified"]) == (0, 0)
    image = Path(pool.info.devices[0].path).read_bytes()
    layout = layout_of(image)
    (slot,) = ready_slots(layout, image)
    assert descriptor_of(layout, image, slot).checksum != 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["put", "commit"])
@pytest.mark.parametrize("read", ["get", "get_prefix", "read_into"])
def test_a_flipped_bit_is_a_miss(pool: Pool, size: int, way: str, read: str) -> None:
    rng = random.Random(size)
    data = payload(size)
    for round_ in range(1, 6):
        store(pool, b"key", data, way)
        store(pool, b"whole", data, way)
        flip(pool, b"key", rng)
        if read == "get":
            assert pool.get_batch([b"whole", b"key"])[1] is None
        elif read == "get_prefix":
            assert len(pool.get_prefix([b"whole", b"key", b"whole"])) == 1
        else:
            buffers = [bytearray(size), bytearray(size)]
            assert pool.read_batch_into([b"key", b"whole"], buffers) == [None, size]
            assert buffers[1] == data.tobytes()
        assert pool.stats()["checksum_failures"] == round_
        # It is gone, so that it can be stored anew; its slot comes back.
        assert pool.contains([b"key", b"whole"]) == [False, True]
        store(pool, b"key", data, way)
        with pool.get(b"key") as view:
            assert np.array_equal(view.array, data)
        assert pool.remove([b"key", b"whole"]) == 2
    deadline = time.monotonic() + 10
    while pool.stats()["closing"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert pool.check().ok and pool.stats()["chunks"] == 0


def test_a_bit_flips_under_a_view(pool: Pool) -> None:
    """Whoever asks after the last byte is told; the space waits until the view is released."""
    data = payload(5000)
    pool.put(b"key", data)
    pool.put(b"other", data)
    held = pool.get(b"key")
    flip(pool, b"key", random.Random(3))
    assert not held.valid()
    assert not held.valid()
    assert pool.stats()["checksum_failures"] == 1
    with pool.get(b"other") as other:
        assert View.all_valid([other.native])
        assert not View.all_valid([other.native, held.native])
    assert pool.get(b"key") is None
    assert pool.put(b"key", data) is PutResult.STORED
    with pool.get(b"key") as view:
        assert np.array_equal(view.array, data)
    held.release()


def test_a_pinned_chunk_is_compared_too(pool: Pool) -> None:
    pool.put(b"key", payload(5000))
    assert pool.pin_prefix([b"key"]) == 1
    flip(pool, b"key", random.Random(4))
    assert pool.get(b"key") is None
    assert pool.unpin(b"key")


def test_chunks_without_a_checksum_are_read_and_counted(pool: Pool) -> None:
    data = payload(5000)
    with _without_verifying(pool) as other:
        other.put(b"key", data)
        with pool.get(b"key") as view:
            assert np.array_equal(view.array, data)
        assert pool.read_into(b"key", bytearray(5000)) == 5000
        assert pool.stats()["unverified"] == 2
        # And one with a checksum is no trouble for whoever does not look at it.
        pool.put(b"other", data)
        with other.get(b"other") as view:
            assert np.array_equal(view.array, data)
        assert pool.stats()["unverified"] == 2


def test_another_hosts_chunk_is_asked_away(pool_path: Path) -> None:
    Pool.format(pool_path, size=64 * MIB, extent_size=8 * MIB, max_hosts=2)
    options = {"verify": True, "heartbeat_ms": 5}
    data = payload(5000)
    with (
        Pool.attach(pool_path, host_id=0, **options) as owner,
        Pool.attach(pool_path, host_id=1, **options) as reader,
    ):
        owner.put(b"key", data)
        flip(owner, b"key", random.Random(5))
        assert reader.get(b"key") is None
        deadline = time.monotonic() + 10
        while reader.contains([b"key"])[0]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert reader.put(b"key", data) is PutResult.STORED
        with owner.get(b"key") as view:
            assert np.array_equal(view.array, data)
