"""Slots that are reserved and committed in batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_beluga import InvalidArgumentError, Pool, PutResult, RecordTooLargeError

SIZE = 10_000
NUMBERS = range(5)
KEYS = [b"key-%d" % number for number in NUMBERS]
METAS = [b"meta-%d" % number for number in NUMBERS]
SIZES = [SIZE - number for number in NUMBERS]


@pytest.fixture
def path(pool_path: Path, visibility: str) -> Path:
    Pool.format(pool_path, size=8 << 20, extent_size=1 << 20, chunk_hint=SIZE)
    return pool_path


def test_batch_of_slots(path: Path) -> None:
    with Pool.attach(path) as pool:
        slots = pool.reserve_batch(SIZE, len(KEYS))
        assert len({slot.slot for slot in slots}) == len(KEYS)
        for number, slot in enumerate(slots):
            slot.array[:] = number
        assert pool.contains(KEYS) == [False] * len(KEYS)
        results = pool.commit_batch(
            slots, KEYS, metas=METAS, sizes=SIZES, depths=[4, 3, 2, 1, 0], keep=True
        )
        assert [result for result, _ in results] == [PutResult.STORED] * len(KEYS)
        for number, (_, view) in enumerate(results):
            assert view is not None and view.meta == METAS[number]
            assert bytes(view.array) == bytes([number]) * SIZES[number]
            assert view.valid()
        assert all(slot.done for slot in slots)
        depths = {entry.record: entry.depth for entry in pool.keys()}  # noqa: SIM118
        assert depths == dict(zip(KEYS, [4, 3, 2, 1, 0], strict=True))
    with Pool.attach(path) as pool:
        assert pool.contains(KEYS) == [True] * len(KEYS)


def test_what_is_there_is_told_one_by_one(path: Path) -> None:
    with Pool.attach(path) as pool:
        pool.put(KEYS[1], b"was there")
        slots = pool.reserve_batch(SIZE, 3)
        results = pool.commit_batch(
            slots, KEYS[:3], metas=[b""] * 3, sizes=[SIZE] * 3, depths=[0] * 3
        )
        assert results == [
            (PutResult.STORED, None),
            (PutResult.DUPLICATE, None),
            (PutResult.STORED, None),
        ]
        view = pool.get(KEYS[1])
        assert view is not None and bytes(view.array) == b"was there"
        assert pool.stats()["writing"] == 0


def test_as_many_as_there_is_room_for(path: Path) -> None:
    with Pool.attach(path) as pool:
        slots = pool.reserve_batch(SIZE, 1_000_000)
        assert 100 < len(slots) < 1000
        assert pool.reserve_batch(SIZE, 1) == []
        slots.pop().abort()
        assert len(pool.reserve_batch(SIZE, 2)) == 1
        assert pool.reserve_batch(SIZE, 0) == []


def test_nonsense_publishes_nothing(path: Path) -> None:
    with Pool.attach(path) as pool:
        slots = pool.reserve_batch(SIZE, 2)
        good = {"metas": [b"", b""], "sizes": [SIZE, SIZE], "depths": [0, 0]}
        for wrong in ({"sizes": [SIZE, SIZE + 1]}, {"sizes": [SIZE, 0]}, {"metas": [b""]}):
            with pytest.raises(InvalidArgumentError):
                pool.commit_batch(slots, KEYS[:2], **{**good, **wrong})  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            pool.commit_batch(slots, KEYS[:1], **good)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            pool.reserve_batch(0, 1)
        assert pool.contains(KEYS) == [False] * len(KEYS)
        assert not any(slot.done for slot in slots)
        with pytest.raises(RecordTooLargeError):
            pool.commit_batch(slots, [KEYS[0], b"x" * 5000], **good)  # type: ignore[arg-type]
        # What came before it is published, and no slot stays behind.
        assert pool.contains(KEYS[:1]) == [True]
        with pytest.raises(InvalidArgumentError):
            pool.commit_batch(slots, KEYS[2:4], **good)  # type: ignore[arg-type]
        assert pool.stats()["writing"] == 0
