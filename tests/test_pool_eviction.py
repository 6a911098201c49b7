"""What goes when room is needed: the coldest, suffixes before prefixes, nothing that is leased."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmcache_beluga import Pool, PutResult

pytestmark = pytest.mark.usefixtures("visibility")

MIB = 1 << 20
SIZE = 20_000
COUNT = 64
KEYS = [b"chunk %d" % i for i in range(COUNT)]

# Victims are the coldest of 16 random chunks. That one of the 8 hottest of 64 goes before 32 others
# have gone happens once in a billion runs.
SAFE = 8


@pytest.fixture
def pool(pool_path: Path) -> Iterator[Pool]:
    with Pool.open(pool_path, size=16 * MIB, extent_size=4 * MIB, chunk_hint=16384) as pool:
        yield pool
        assert pool.check().ok


def test_suffixes_go_before_prefixes(pool: Pool) -> None:
    pool.put_batch(KEYS, [bytes(SIZE)] * COUNT, first_depth=0)
    assert pool.evict(SIZE * COUNT // 2) == SIZE * COUNT // 2
    present = pool.contains(KEYS)
    assert sum(present) == COUNT // 2
    assert pool.contains_prefix(KEYS) >= SAFE
    assert sum(present[: COUNT // 2]) > sum(present[COUNT // 2 :])


def test_suffixes_go_first_whatever_the_order_of_storing(pool: Pool) -> None:
    for depth in reversed(range(COUNT)):
        pool.put(KEYS[depth], bytes(SIZE), depth=depth)
    pool.evict(SIZE * COUNT // 2)
    assert pool.contains_prefix(KEYS) >= SAFE


def test_an_older_request_goes_before_a_newer_one(pool: Pool) -> None:
    old, new = KEYS[:32], KEYS[32:]
    pool.put_batch(old, [bytes(SIZE)] * 32)
    time.sleep(0.6)  # a position in the prefix counts as 16 ms
    pool.put_batch(new, [bytes(SIZE)] * 32)
    pool.evict(SIZE * 24)
    assert pool.contains_prefix(new) >= SAFE
    assert sum(pool.contains(new)) > sum(pool.contains(old))


@pytest.mark.parametrize("how", ["get", "read_into", "touch", "pin"])
def test_what_was_used_last_stays(pool: Pool, how: str) -> None:
    for key in KEYS:
        pool.put(key, bytes(SIZE))
    time.sleep(0.5)  # what was used is as recent as the heartbeat before
    used = KEYS[SAFE : 2 * SAFE]
    if how == "get":
        for view in pool.get_batch(used):
            view.release()
    elif how == "read_into":
        pool.read_batch_into(used, [bytearray(SIZE) for _ in used])
    elif how == "touch":
        assert pool.touch(used) == SAFE
    else:
        pool.pin_prefix(used)
        pool.unpin_all()
    pool.evict(SIZE * COUNT // 2)
    assert all(pool.contains(used))


def test_recency_outlives_its_processes(pool: Pool, pool_path: Path) -> None:
    for key in KEYS:
        pool.put(key, bytes(SIZE))
    time.sleep(0.5)  # a restarted host goes on with the tick of its last heartbeat
    pool.touch(KEYS[:SAFE])
    pool.close()
    with Pool.attach(pool_path) as later:
        later.evict(SIZE * COUNT // 2)
        assert later.contains_prefix(KEYS) >= SAFE
    pool._native = Pool.attach(pool_path)._native  # the fixture looks at it once more


def test_puts_evict_what_is_cold(pool: Pool) -> None:
    """A working set that is used all the time survives a scan of anything else."""
    working = KEYS[:SAFE]
    for key in working:
        pool.put(key, key * 100)
    for i in range(2000):
        assert pool.put(b"scan %d" % i, bytes(SIZE)) is PutResult.STORED
        if i % 20 == 0:
            time.sleep(0.001)
            assert pool.touch(working) == SAFE
    assert pool.stats()["evictions"] >= 1000
    assert [view.array.tobytes() for view in pool.get_prefix(working)] == [k * 100 for k in working]


def test_evict_frees_what_was_asked_for(pool: Pool) -> None:
    pool.put_batch(KEYS, [bytes(SIZE)] * COUNT)
    assert pool.evict(1) == SIZE
    assert pool.evict(3 * SIZE + 1) == 4 * SIZE
    assert pool.evict(0) == 0
    assert pool.stats()["chunks"] == COUNT - 5
    assert pool.evict(1 << 60) == (COUNT - 5) * SIZE
    assert pool.evict(1 << 60) == 0
    stats = pool.stats()
    assert (stats["chunks"], stats["evictions"], stats["evicted_bytes"]) == (
        0,
        COUNT,
        COUNT * SIZE,
    )


def test_leased_and_pinned_chunks_stay(pool: Pool) -> None:
    pool.put_batch(KEYS, [key * 1000 for key in KEYS])
    views = pool.get_batch(KEYS[10:13])
    assert pool.pin_prefix(KEYS[20:22]) == 2
    pool.evict(1 << 60)
    assert [i for i, there in enumerate(pool.contains(KEYS)) if there] == [10, 11, 12, 20, 21]
    assert [view.array.tobytes() for view in views] == [key * 1000 for key in KEYS[10:13]]
    assert all(view.valid() for view in views)
    for view in views:
        view.release()
    pool.unpin_all()
    pool.evict(1 << 60)
    assert pool.stats()["chunks"] == 0
