"""Storing and reading chunks: what goes in comes out, through every door of the API."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import Child, wait_until

from lmcache_beluga import InvalidArgumentError, Pool, PoolClosedError, PutResult
from lmcache_beluga._native import View

pytestmark = pytest.mark.usefixtures("visibility")

MIB = 1 << 20


@pytest.fixture
def pool(pool_path: Path) -> Iterator[Pool]:
    with Pool.open(pool_path, size=32 * MIB, extent_size=4 * MIB, chunk_hint=8192) as pool:
        yield pool
        report = pool.check()
        assert report.ok, report.errors
        assert (report.writing, report.closing) == (0, 0)


def payload(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng([seed, size]).bytes(size)


def test_a_chunk_comes_back_with_its_bytes_metadata_and_record(pool: Pool) -> None:
    data = payload(1_000_003)
    assert pool.put(b"key", data, meta=b"layout", depth=7) is PutResult.STORED
    with pool.get(b"key") as view:
        assert view.array.tobytes() == data
        assert (view.meta, view.record, view.size, len(view)) == (
            b"layout",
            b"key",
            len(data),
            len(data),
        )
    (entry,) = pool.keys()
    assert (entry.record, entry.meta, entry.size, entry.depth) == (
        b"key",
        b"layout",
        len(data),
        7,
    )
    assert (entry.host, entry.state, entry.leased) == (0, "ready", False)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4095, 65_536, MIB + 1, 4 * MIB])
def test_every_size_up_to_an_extent(pool: Pool, size: int) -> None:
    data = payload(size)
    assert pool.put(b"key", data) is PutResult.STORED
    back = bytearray(size)
    assert pool.read_into(b"key", back) == size
    assert back == data


def test_a_view_is_read_only_memory_of_the_pool(pool: Pool) -> None:
    data = payload(5000)
    pool.put(b"key", data)
    view = pool.get(b"key")
    assert view.array.dtype == np.uint8
    assert view.array.shape == (5000,)
    assert not view.array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view.array[0] = 1
    # Zero-copy: two views of one chunk are one memory.
    with pool.get(b"key") as other:
        assert other.address == view.address == view.array.ctypes.data
    assert np.from_dlpack(view).tobytes() == data
    assert np.from_dlpack(view).ctypes.data == view.address
    assert view.valid()
    view.release()
    view.release()
    assert view.released
    assert not view.valid()
    with pytest.raises(InvalidArgumentError, match="this view was released"):
        _ = view.array


def test_a_view_is_a_buffer(pool: Pool) -> None:
    pool.put(b"key", b"hello")
    view = pool.get(b"key")
    assert bytes(memoryview(view.array)) == b"hello"
    assert memoryview(view._native).readonly
    view.release()
    with pytest.raises(BufferError, match="this view was released"):
        memoryview(view._native)


def test_many_views_are_looked_at_and_released_at_once(pool: Pool) -> None:
    keys = [b"%d" % i for i in range(5)]
    pool.put_batch(keys, [b"x"] * 5)
    views = [view for view in pool.lease_batch(keys) if view is not None]
    assert View.all_valid(views) and View.all_valid([])
    views[3].release()
    assert not View.all_valid(views)
    View.release_all(views)
    assert all(view.released for view in views) and pool.stats()["views"] == 0
    View.release_all(views)
    with pytest.raises(RuntimeError):
        View.all_valid([b"no view"])  # type: ignore[list-item]  # what is asked here


def test_a_missing_key_is_a_miss_everywhere(pool: Pool) -> None:
    pool.put(b"here", b"x")
    assert pool.get(b"gone") is None
    assert pool.read_into(b"gone", bytearray(1)) is None
    assert pool.contains([b"gone", b"here"]) == [False, True]
    assert pool.contains_prefix([b"gone", b"here"]) == 0
    assert pool.get_prefix([b"gone", b"here"]) == []
    assert pool.touch([b"gone"]) == 0
    assert pool.remove([b"gone"]) == 0
    assert not pool.pin(b"gone")
    assert not pool.unpin(b"gone")


def test_empty_batches(pool: Pool) -> None:
    assert pool.contains([]) == []
    assert pool.contains_prefix([]) == 0
    assert pool.get_batch([]) == []
    assert pool.put_batch([], []) == []
    assert pool.read_batch_into([], []) == []
    assert (pool.touch([]), pool.remove([]), pool.pin_prefix([])) == (0, 0, 0)


@pytest.mark.parametrize("present", [0, 1, 63, 64, 65, 128, 300])
def test_the_prefix_ends_at_the_first_miss(pool: Pool, present: int) -> None:
    keys = [b"chunk %d" % i for i in range(300)]
    stored = keys[:present] + keys[present + 1 :]
    pool.put_batch(stored, [key * 3 for key in stored])
    assert pool.contains_prefix(keys) == present
    assert [view.array.tobytes() for view in pool.get_prefix(keys)] == [
        key * 3 for key in keys[:present]
    ]
    assert pool.pin_prefix(keys) == present
    assert pool.unpin_all() == present
    gc.collect()
    assert pool.stats()["leased"] == 0


def test_a_batch_of_chunks(pool: Pool) -> None:
    keys = [b"chunk %d" % i for i in range(40)]
    chunks = [payload(9001 + 17 * i, i) for i in range(40)]
    metas = [b"meta %d" % i for i in range(40)]
    assert set(pool.put_batch(keys, chunks, metas=metas, first_depth=5)) == {PutResult.STORED}
    views = pool.get_batch(keys[::-1])
    assert [view.array.tobytes() for view in views] == chunks[::-1]
    assert [view.meta for view in views] == metas[::-1]
    entries = list(pool.keys())
    assert {entry.record: entry.depth for entry in entries} == {
        key: 5 + i for i, key in enumerate(keys)
    }
    buffers = [bytearray(len(chunk) + i) for i, chunk in enumerate(chunks)]
    assert pool.read_batch_into(keys, buffers) == [len(chunk) for chunk in chunks]
    assert [bytes(b[: len(c)]) for b, c in zip(buffers, chunks, strict=True)] == chunks


def test_memory_without_a_python_buffer(pool: Pool) -> None:
    source = np.frombuffer(payload(70_000), np.uint8)
    target = np.zeros(70_000, np.uint8)
    pool.put(b"key", (source.ctypes.data, source.nbytes))
    assert pool.read_into(b"key", (target.ctypes.data, target.nbytes)) == 70_000
    assert (source == target).all()


def test_a_key_is_stored_once(pool: Pool) -> None:
    assert pool.put(b"key", b"first") is PutResult.STORED
    assert pool.put(b"key", b"second") is PutResult.DUPLICATE
    assert pool.put_batch([b"new", b"new"], [b"one", b"two"]) == [
        PutResult.STORED,
        PutResult.DUPLICATE,
    ]
    assert pool.get(b"key").array.tobytes() == b"first"
    assert pool.get(b"new").array.tobytes() == b"one"
    assert pool.stats()["duplicates"] == 2


def test_a_reservation_is_seen_once_it_is_committed(pool: Pool) -> None:
    data = payload(100_000)
    reservation = pool.reserve(len(data), b"key")
    assert reservation.size == len(data) <= reservation.capacity
    reservation.buffer[:] = data
    assert not pool.contains([b"key"])[0]
    assert pool.stats()["writing"] == 1
    assert reservation.commit(b"key", meta=b"m", depth=2) is PutResult.STORED
    assert reservation.done
    view = pool.get(b"key")
    assert view.address == reservation.address
    assert view.array.tobytes() == data
    assert pool.reserve(10, b"key") is None
    for again in (reservation.commit, reservation.commit_view):
        with pytest.raises(InvalidArgumentError, match="already committed or aborted"):
            again(b"other")
    with pytest.raises(BufferError, match="committed or aborted"):
        _ = reservation.buffer
    with pytest.raises(InvalidArgumentError, match="already committed or aborted"):
        _ = reservation.array
    reservation.abort()  # harmless after a commit
    assert pool.contains([b"key"]) == [True]


def test_less_may_be_committed_than_was_reserved(pool: Pool) -> None:
    reservation = pool.reserve(1000)
    reservation.array[:10] = 7
    with pytest.raises(InvalidArgumentError, match="size must be 1 to the 1000 bytes reserved"):
        reservation.commit(b"key", size=1001)
    with pytest.raises(InvalidArgumentError, match="size must be 1 to the 1000 bytes reserved"):
        reservation.commit(b"key", size=0)
    assert reservation.commit(b"key", size=10) is PutResult.STORED
    assert pool.get(b"key").array.tobytes() == bytes([7] * 10)


def test_commit_view_goes_on_reading(pool: Pool) -> None:
    reservation = pool.reserve(5)
    reservation.buffer[:] = b"hello"
    result, view = reservation.commit_view(b"key", meta=b"m")
    assert result is PutResult.STORED
    assert view.array.tobytes() == b"hello"
    assert view.valid()
    assert (view.meta, view.record) == (b"m", b"key")
    late = pool.reserve(5)
    assert late.commit_view(b"key") == (PutResult.DUPLICATE, None)


@pytest.mark.parametrize("ending", ["abort", "with", "garbage"])
def test_an_unwanted_reservation_gives_its_slot_back(pool: Pool, ending: str) -> None:
    reservation = pool.reserve(1000)
    if ending == "abort":
        reservation.abort()
        reservation.abort()
    elif ending == "with":
        with reservation:
            pass
    else:
        del reservation
        gc.collect()
    stats = pool.stats()
    assert (stats["writing"], stats["chunks"]) == (0, 0)


def test_a_late_commit_of_a_stored_key_gives_its_slot_back(pool: Pool) -> None:
    reservation = pool.reserve(3)
    pool.put(b"key", b"won")
    assert reservation.commit(b"key") is PutResult.DUPLICATE
    assert pool.stats()["writing"] == 0
    assert pool.get(b"key").array.tobytes() == b"won"


def test_remove_takes_a_chunk_away_at_once_and_its_space_when_its_leases_end(pool: Pool) -> None:
    pool.put(b"key", b"old")
    with pool.get(b"key") as view:
        assert pool.remove([b"key", b"absent"]) == 1
        assert pool.contains([b"key"]) == [False]
        assert pool.get(b"key") is None
        assert pool.put(b"key", b"new") is PutResult.STORED
        assert view.array.tobytes() == b"old"
        assert view.valid()
        assert pool.stats()["closing"] == 1
    assert pool.get(b"key").array.tobytes() == b"new"
    wait_until(lambda: pool.stats()["closing"] == 0)


def test_clear_keeps_nothing_but_what_is_leased(pool: Pool) -> None:
    pool.put_batch([b"%d" % i for i in range(50)], [payload(10_000, i) for i in range(50)])
    view = pool.get(b"7")
    assert pool.clear() == 50
    assert not any(pool.contains([b"%d" % i for i in range(50)]))
    assert view.array.tobytes() == payload(10_000, 7)
    assert view.valid()
    view.release()
    wait_until(lambda: pool.stats()["closing"] == 0)
    pool.clear()
    stats = pool.stats()
    assert (stats["chunks"], stats["extents_owned"]) == (0, 0)


def test_pins_are_counted_and_unpin_is_idempotent(pool: Pool) -> None:
    pool.put(b"key", b"x")
    assert pool.pin(b"key")
    assert pool.pin(b"key")
    assert pool.stats()["pins"] == 2
    assert pool.unpin(b"key")
    assert pool.stats()["leased"] == 1
    assert pool.unpin(b"key")
    assert not pool.unpin(b"key")
    stats = pool.stats()
    assert (stats["pins"], stats["leased"]) == (0, 0)


def test_a_pin_follows_a_key_that_was_removed_and_stored_again(pool: Pool) -> None:
    pool.put(b"key", b"old")
    pool.pin(b"key")
    pool.remove([b"key"])
    pool.put(b"key", b"new")
    assert pool.pin(b"key")
    wait_until(lambda: pool.stats()["closing"] == 0)
    pool.evict(1 << 40)
    assert pool.get(b"key").array.tobytes() == b"new"
    assert pool.unpin_all() == 2


def test_counters_tell_what_happened(pool: Pool) -> None:
    pool.put_batch([b"a", b"b"], [b"x" * 100, b"y" * 200])
    pool.put(b"a", b"again")
    pool.contains([b"a", b"b", b"c"])
    pool.contains_prefix([b"a", b"c", b"b"])
    with pool.get(b"a"):
        stats = pool.stats()
        assert (stats["views"], stats["leased"]) == (1, 1)
    pool.read_into(b"b", bytearray(200))
    pool.remove([b"a"])
    freed = pool.evict(1)
    stats = pool.stats()
    expected = {
        "puts": 2,
        "put_bytes": 300,
        "duplicates": 1,
        "lookups": 4,
        "hits": 5,
        "misses": 3,
        "gets": 2,
        "get_bytes": 300,
        "removes": 1,
        "evictions": 1,
        "evicted_bytes": 200,
        "chunks": 0,
        "bytes_used": 0,
        "garbage": 0,
        "lost_leases": 0,
        "views": 0,
        "bytes_capacity": pool.info.capacity,
    }
    assert {name: stats[name] for name in expected} == expected
    assert freed == 200


def test_occupancy_adds_up(pool: Pool) -> None:
    sizes = [1000, 20_000, 20_001, 300_000, MIB]
    for i, size in enumerate(sizes):
        pool.put(b"%d" % i, payload(size))
    stats = pool.stats()
    assert (stats["chunks"], stats["bytes_used"]) == (len(sizes), sum(sizes))
    assert stats["extents_owned"] + stats["extents_free"] == pool.info.extents
    occupancy = pool.inspect()["occupancy"]
    cuts = occupancy["cuts"]
    assert sum(cut["used"] for cut in cuts) == len(sizes)
    assert sum(cut["used"] * cut["slot_size"] for cut in cuts) == sum(sizes) + stats["bytes_wasted"]
    assert sum(cut["extents"] for cut in cuts) == stats["extents_owned"]


def test_inspect_is_ready_for_json(pool: Pool) -> None:
    import json

    pool.put(b"key", b"x")
    told = json.loads(json.dumps(pool.inspect()))
    assert told["geometry"]["uuid"] == pool.uuid
    assert told["counters"]["puts"] == 1
    (host,) = told["hosts"]
    assert (host["id"], host["self"], host["live"], host["state"]) == (0, True, True, "member")


def test_a_second_handle_and_a_later_one_find_everything(pool: Pool, pool_path: Path) -> None:
    pool.put(b"mine", b"1")
    with Pool.attach(pool_path) as other:
        assert other.get(b"mine").array.tobytes() == b"1"
        other.put(b"theirs", b"2")
        assert pool.get(b"theirs").array.tobytes() == b"2"
    assert pool.get(b"theirs").array.tobytes() == b"2"
    pool.close()
    with Pool.attach(pool_path) as later:
        assert later.contains([b"mine", b"theirs"]) == [True, True]
        assert later.check().ok
    with pytest.raises(PoolClosedError):
        pool.stats()
    # The fixture looks at its pool once more.
    pool._native = Pool.attach(pool_path)._native


def test_another_process_finds_what_was_stored(
    pool: Pool, pool_path: Path, start_child: Callable[..., Child]
) -> None:
    child = start_child(
        """
        with Pool.attach(arguments[0]) as pool:
            pool.put(b"theirs", b"2" * 1000, meta=b"m")
            say("stored")
            hear()
            say(pool.get(b"mine").array.tobytes().decode())
        """,
        pool_path,
    )
    child.expect("stored")
    with pool.get(b"theirs") as view:
        assert (view.array.tobytes(), view.meta) == (b"2" * 1000, b"m")
    pool.put(b"mine", b"one")
    child.say("go")
    child.expect("one")
    child.finish()


def test_the_pool_is_warm_after_a_restart(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    writer = start_child(
        """
        with Pool.open(arguments[0], size=16 << 20) as pool:
            pool.put_batch([b"%d" % i for i in range(100)], [b"%d" % i * 500 for i in range(100)])
        """,
        pool_path,
    )
    writer.finish()
    with Pool.attach(pool_path) as pool:
        assert pool.contains_prefix([b"%d" % i for i in range(100)]) == 100
        assert all(pool.get(b"%d" % i).array.tobytes() == b"%d" % i * 500 for i in range(100))


def test_open_makes_a_missing_pool_and_attaches_to_one_that_is_there(pool_path: Path) -> None:
    with Pool.open(pool_path, size=8 * MIB, max_hosts=3, key_scheme="s") as first:
        first.put(b"key", b"x")
        assert (first.info.max_hosts, first.info.key_scheme) == (3, "s")
    with Pool.open(pool_path, size=8 * MIB, key_scheme="s") as second:
        assert second.uuid == first.uuid
        assert second.get(b"key").array.tobytes() == b"x"


def test_lmcache_keys_are_keys(pool: Pool) -> None:
    torch = pytest.importorskip("torch")
    from lmcache.utils import CacheEngineKey

    def key(chunk_hash: int) -> CacheEngineKey:
        return CacheEngineKey("model", 1, 0, chunk_hash, torch.bfloat16)

    pool.put(key(1), b"one")
    assert pool.contains([key(1), key(2)]) == [True, False]
    assert pool.get(key(1)).array.tobytes() == b"one"
