"""What the shared L1 does that LMCache's own does not: others' chunks, leases, eviction, copies."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from l1_pair import LAYOUT, MIB, NBYTES, Heard, config, key, keys
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import EvictionConfig
from lmcache.v1.distributed.error import L1Error, L1ReconfigureError
from lmcache.v1.distributed.storage_controllers import L1EvictionController
from lmcache.v1.memory_management import MemoryObj
from processes import Child, wait_until

from lmcache_beluga import Pool
from lmcache_beluga.engines import l1_reach
from lmcache_beluga.engines.l1 import BelugaL1

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from recording_runtime import RecordingRuntime

Start = Callable[..., BelugaL1]


@pytest.fixture
def start(pool_path: Path) -> Iterator[Start]:
    """Starts L1s on the test's pool, each with a handle of its own as a server has."""
    started: list[BelugaL1] = []

    def start(
        read_ttl: int = 300, write_ttl: int = 600, size: int = 16, **options: int
    ) -> BelugaL1:
        pool = Pool.open(
            pool_path, size=size * MIB, extent_size=MIB, chunk_hint=NBYTES, max_hosts=4, **options
        )
        started.append(BelugaL1(config(read_ttl, write_ttl), pool))
        return started[-1]

    yield start
    for l1 in started:
        l1.close()


def content(name: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash(name))
    return torch.randint(0, 256, (NBYTES,), dtype=torch.uint8, generator=generator)


def store(l1: BelugaL1, some: list[ObjectKey], tag: str = "w") -> dict[ObjectKey, L1Error]:
    reserved = l1.reserve_write(some, [False] * len(some), LAYOUT, tag)
    done = [k for k, (_, obj) in reserved.items() if obj is not None]
    for k in done:
        write(reserved[k][1], k)
    return l1.finish_write(done, tag)


def write(obj: MemoryObj | None, k: ObjectKey) -> None:
    assert obj is not None and obj.raw_tensor is not None
    obj.raw_tensor.view(torch.uint8)[:NBYTES].copy_(content(k.chunk_hash))


def reads_right(l1: BelugaL1, some: list[ObjectKey]) -> bool:
    found = l1.unsafe_read(some)
    for k, (error, obj) in found.items():
        assert error is L1Error.SUCCESS, error
        assert torch.equal(obj.tensor.reshape(-1).view(torch.uint8), content(k.chunk_hash))
        assert obj.tensor.shape == LAYOUT.shapes[0] and obj.tensor.dtype == LAYOUT.dtypes[0]
        assert obj.get_size() == NBYTES
    return len(found) == len(some)


def errors(found: dict[ObjectKey, tuple[L1Error, MemoryObj | None]]) -> set[L1Error]:
    return {error for error, _ in found.values()}


@pytest.mark.parametrize("host", [0, 1])
def test_others_chunks_are_resident(start: Start, host: int) -> None:
    one, two = start(), start(host_id=host)
    some = keys("abc")
    assert set(store(one, some).values()) == {L1Error.SUCCESS}
    assert errors(two.reserve_read(some)) == {L1Error.SUCCESS}
    assert reads_right(two, some)
    assert errors(two.reserve_write(some, [False] * 3, LAYOUT, "w")) == {L1Error.KEY_NOT_WRITABLE}
    # What one removes, the other goes on reading; then it is gone for both.
    assert one.delete(some[:1]) == {some[0]: L1Error.SUCCESS}
    assert reads_right(two, some)
    two.finish_read(some)
    wait_until(lambda: errors(two.reserve_read(some[:1])) == {L1Error.KEY_NOT_EXIST})


def test_salts_and_groups_tell_chunks_apart(start: Start) -> None:
    l1 = start()
    plain, salted = key("a"), key("a", salt="tenant")
    group = ObjectKey(plain.chunk_hash, "model", 0, 1)
    store(l1, [plain])
    found = l1.reserve_read([plain, salted, group])
    assert [found[k][0] for k in (plain, salted, group)] == [
        L1Error.SUCCESS,
        L1Error.KEY_NOT_EXIST,
        L1Error.KEY_NOT_EXIST,
    ]


def test_two_servers_store_one_chunk_at_once(start: Start) -> None:
    one, two = start(), start()
    heard = Heard()
    two.register_listener(heard)
    (a,) = keys("a")
    for l1 in (one, two):
        write(l1.reserve_write([a], [False], LAYOUT, "w")[a][1], a)
    assert one.finish_write([a], "w") == {a: L1Error.SUCCESS}
    # Stored by the other meanwhile: done, and nothing that L2s should hear of.
    assert two.finish_write_and_reserve_read([a], tag="w")[a][0] is L1Error.SUCCESS
    assert "finish_write_and_reserve_read" not in [name for name, _ in heard.calls]
    assert reads_right(two, [a])
    assert two.get_staging_memory_usage() == 0


def test_what_a_request_loads_for_itself_stays_out_of_the_pool(start: Start) -> None:
    one, two = start(), start()
    (u,) = keys("u")
    write(one.reserve_write([u], [True], LAYOUT, "prefetch")[u][1], u)
    one.finish_write_and_reserve_read([u], tag="prefetch")
    assert reads_right(one, [u])
    assert errors(two.reserve_read([u])) == {L1Error.KEY_NOT_EXIST}
    one.finish_read([u])
    assert errors(one.reserve_read([u])) == {L1Error.KEY_NOT_EXIST}
    assert one.report_status()["pool"]["host"]["writing"] == 0


def test_a_pool_that_is_all_in_use_refuses_and_goes_on(start: Start) -> None:
    l1 = start(size=4)
    some = [key(number) for number in range(4 * MIB // NBYTES)]
    store(l1, some)
    held = [k for k, (_, obj) in l1.reserve_read(some).items() if obj is not None]
    assert len(held) > 100
    more = keys("xyz")
    # As far as there is room: the first keys, and these can be stored.
    found = l1.reserve_write(more, [False] * 3, LAYOUT, "w")
    while errors(found) != {L1Error.OUT_OF_MEMORY}:
        codes = [found[k][0] for k in more]
        assert codes == sorted(codes, key=[L1Error.SUCCESS, L1Error.OUT_OF_MEMORY].index)
        held += [k for k in more if found[k][1] is not None]
        l1.finish_write_and_reserve_read([k for k in more if found[k][1] is not None], tag="w")
        more = [key(f"more {len(held)} {n}") for n in range(3)]
        found = l1.reserve_write(more, [False] * 3, LAYOUT, "w")
    used, total = l1.get_memory_usage()
    assert used == len(held) * NBYTES and used / total > 0.8
    l1.finish_read(held)
    assert l1.get_memory_usage()[0] == 0
    assert set(store(l1, more).values()) == {L1Error.SUCCESS}  # the pool evicts by itself


def test_lmcache_s_eviction_leaves_the_pool_alone(start: Start) -> None:
    l1 = start(size=4)
    eager = EvictionConfig("LRU", trigger_watermark=0.0, eviction_ratio=1.0)
    controller = L1EvictionController(l1, eager)
    some = keys("abc")
    store(l1, some)
    assert not any(map(l1.is_key_evictable, some))
    controller.start()
    time.sleep(1.3)  # it looks once a second
    controller.stop()
    assert controller._eviction_policy.get_eviction_actions(1.0) == []
    assert errors(l1.reserve_read(some)) == {L1Error.SUCCESS}


def test_a_lost_lease_fails_the_load_and_is_told(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    l1 = start()
    some = keys("abc")
    store(l1, some)
    l1.reserve_read(some)
    lost = l1._reads._held[some[1]].obj
    intact = l1._memory.untouched
    monkeypatch.setattr(l1._memory, "untouched", lambda obj: obj is not lost and intact(obj))
    assert [error for error, _ in l1.unsafe_read(some).values()] == [
        L1Error.SUCCESS,
        L1Error.KEY_NOT_READABLE,
        L1Error.SUCCESS,
    ]
    # A new request gets a new lease, and both may end theirs.
    assert errors(l1.reserve_read(some)) == {L1Error.SUCCESS}
    assert reads_right(l1, some)
    for _ in range(2):
        assert reads_right(l1, some)
        assert set(l1.finish_read(some).values()) == {L1Error.SUCCESS}
    assert l1.report_status()["pool"]["lost_while_locked"] == 1
    assert [log.levelno for log in caplog.records if "lease" in log.getMessage()] == [logging.ERROR]
    assert l1.get_memory_usage()[0] == 0


def test_two_requests_that_end_at_once_both_read_right(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    l1 = start()
    some = keys("abc")
    store(l1, some)
    l1.reserve_read(some)
    l1.reserve_read(some)
    look = l1._memory.all_untouched
    others: list[dict[ObjectKey, L1Error]] = []

    def slow_look(objs: list[MemoryObj]) -> bool:
        if not others:
            others.append({})
            others[0] = l1.finish_read(some)  # the last lock goes while the first one's end is seen
        return look(objs)

    monkeypatch.setattr(l1._memory, "all_untouched", slow_look)
    assert set(l1.finish_read(some).values()) == {L1Error.SUCCESS}
    assert set(others[0].values()) == {L1Error.SUCCESS}
    assert l1.report_status()["pool"]["lost_while_locked"] == 0
    assert l1.get_memory_usage()[0] == 0


def test_a_process_that_was_stopped_notices(pool_path: Path) -> None:
    """SIGSTOP for longer than the lease; meanwhile the chunk is evicted and its slot reused."""
    Pool.format(pool_path, size=4 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    child = Child(
        f"""
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from l1_pair import config, keys
        from lmcache_beluga.engines.l1 import BelugaL1
        pool = Pool.attach(arguments[0], lease_ms=400, dead_after_ms=2000)
        l1 = BelugaL1(config(), pool)
        (a,) = keys("a")
        hear()
        say(l1.reserve_read([a])[a][0].name)
        hear()
        say(l1.unsafe_read([a])[a][0].name)
        say(l1.finish_read([a])[a].name, l1.report_status()["pool"]["lost_while_locked"])
        say(l1.reserve_read([a])[a][0].name)
        l1.close()
        """,
        pool_path,
    )
    try:
        with Pool.attach(pool_path) as pool:
            l1 = BelugaL1(config(), pool)
            (a,) = keys("a")
            store(l1, [a])
            child.say("look")
            child.expect("SUCCESS")
            child.stop()
            time.sleep(0.6)
            for number in range(8 * MIB // NBYTES):
                pool.put(b"%d" % number, bytes(NBYTES))
            assert not pool.contains([a])[0]
            child.resume()
            child.say("read")
            child.expect("KEY_NOT_READABLE")
            child.expect("KEY_IN_WRONG_STATE 1")
            child.expect("KEY_NOT_EXIST")
            child.finish()
    finally:
        child.discard()


def test_locks_that_lapse_give_their_leases_back(start: Start) -> None:
    """Without another call than the one that LMCache makes once a second."""
    l1 = start(read_ttl=1, write_ttl=1)
    some = keys("ab")
    store(l1, some)
    l1.reserve_read(some)
    l1.reserve_write(keys("c"), [False], LAYOUT, "w")
    assert l1.get_memory_usage()[0] == 3 * NBYTES
    wait_until(lambda: l1.get_memory_usage()[0] == NBYTES, 10)
    assert l1._pool.stats()["views"] == 0
    assert l1.report_status()["read_locked_count"] == 0


def test_abandoned_reservations_are_free_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcache_beluga.engines.l1.ABANDONED_S", 0.0)
    l1 = start(write_ttl=1)
    l1.reserve_write(keys("c"), [False], LAYOUT, "w")
    assert l1._pool.stats()["writing"] == 1
    wait_until(lambda: l1.get_memory_usage()[0] == 0, 10)
    assert l1._pool.stats()["writing"] == 0


def test_force_frees_nothing_under_a_reader(start: Start) -> None:
    """LMCache's own L1 gives memory back under readers then; here they keep it."""
    l1 = start(size=4)
    (a,) = keys("a")
    store(l1, [a])
    obj = l1.reserve_read([a])[a][1]
    l1.delete([a], force=True)
    store(l1, [key(number) for number in range(4 * MIB // NBYTES)])
    assert torch.equal(obj.raw_tensor, content(a.chunk_hash))


class Everything:
    """Stands for CUDA: GPUs reach nothing, or what is registered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runtime: RecordingRuntime) -> None:
        reach = l1_reach.ServerReach
        monkeypatch.setattr(
            "lmcache_beluga.engines.l1.ServerReach", lambda p, everything: reach(p, runtime)
        )


def test_gpus_copy_from_and_to_the_pool(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RecordingRuntime()
    Everything(monkeypatch, runtime)
    pool = Pool.open(pool_path, size=16 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    l1 = BelugaL1(config(), pool)
    some = keys("abc")
    store(l1, some)
    for _, obj in l1.reserve_read(some).values():
        assert any(at <= obj.data_ptr < at + size for at, size in runtime.registered.items())
    status = l1.report_status()["pool"]
    assert status["bytes_registered"] >= MIB  # and what is used next
    assert status["bytes_read_in_place"] == status["bytes_written_in_place"] == 3 * NBYTES
    assert status["bytes_read_by_copy"] == status["bytes_written_by_copy"] == 0
    l1.close()
    assert runtime.registered == {}


def test_what_gpus_cannot_reach_is_copied(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Everything(monkeypatch, RecordingRuntime(refuse=0))
    pool = Pool.open(pool_path, size=16 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    l1 = BelugaL1(config(), pool)
    some = keys("abc")
    assert set(store(l1, some).values()) == {L1Error.SUCCESS}
    l1.reserve_read(some)
    assert reads_right(l1, some)
    begin, end = pool.base_address, pool.base_address + 16 * MIB
    assert not any(begin <= obj.data_ptr < end for _, obj in l1.unsafe_read(some).values())
    l1.finish_read(some)
    # Loaded for a request, and stored and locked at once.
    u, d = keys("ud")
    for k, temporary in ((u, True), (d, False)):
        write(l1.reserve_write([k], [temporary], LAYOUT, "w")[k][1], k)
    l1.finish_write_and_reserve_read([u, d], tag="w")
    assert reads_right(l1, [u, d])
    l1.finish_read([u, d])
    status = l1.report_status()["pool"]
    assert status["bytes_read_in_place"] == status["bytes_written_in_place"] == 0
    assert status["bytes_read_by_copy"] == 3 * NBYTES
    assert len([log for log in caplog.records if "CUDA refused" in log.getMessage()]) == 1
    assert l1.get_memory_usage()[0] == 0
    # A lease that is lost while the copy is made: the copy may be of anything.
    with monkeypatch.context() as lost:
        lost.setattr("lmcache_beluga._native.View.valid", lambda view: False)
        assert errors(l1.reserve_read(some)) == {L1Error.KEY_NOT_EXIST}
    # There is only so much memory for copies: what does not fit is a miss, and no more.
    many = [key(number) for number in range(9 * MIB // NBYTES)]
    for k in many:
        pool.put(k, content(k.chunk_hash).numpy(), meta=l1._memory._codec.pack(_like(l1)))
    assert errors(l1.reserve_read(many)) == {L1Error.SUCCESS, L1Error.KEY_NOT_EXIST}
    l1.close()


def test_memory_for_copies_is_not_the_pool(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMCache removes the shared memory by its name before it makes its own."""
    Everything(monkeypatch, RecordingRuntime(refuse=0))
    path = shm_dir.parent / f"lmcache_l1_pool_{shm_dir.name}"
    settings = config()
    settings.memory_config.shm_name = path.name
    try:
        pool = Pool.open(path, size=16 * MIB, extent_size=MIB, chunk_hint=NBYTES)
        l1 = BelugaL1(settings, pool)
        store(l1, keys("abc"))
        l1.reserve_read(keys("abc"))
        assert reads_right(l1, keys("abc"))
        l1.close()
        with Pool.attach(path, uuid=pool.uuid) as again:
            assert again.contains(keys("abc")) == [True] * 3
    finally:
        path.unlink(missing_ok=True)


def _like(l1: BelugaL1) -> MemoryObj:
    (obj,) = l1._memory.writing(LAYOUT, 1)
    l1._memory.release(obj)
    return obj


def test_prefixes_outlive_suffixes(start: Start) -> None:
    l1 = start()
    prompt = [key(f"p{number}") for number in range(8)]
    l1.reserve_read(prompt)
    store(l1, prompt[:4])
    store(l1, prompt[4:])  # in pieces, as prompts are computed
    depths = {entry.record: entry.depth for entry in l1._pool.keys()}  # noqa: SIM118
    assert sorted(depths.values()) == list(range(8))


def test_no_call_raises_when_the_pool_is_gone(start: Start, pool_path: Path) -> None:
    l1 = start()
    some = keys("ab")
    store(l1, some)
    l1.reserve_read(some[:1])
    obj = l1.reserve_write(keys("c"), [False], LAYOUT, "w")[keys("c")[0]][1]
    assert obj is not None
    l1._pool.close()
    assert errors(l1.reserve_read(some)) == {L1Error.KEY_NOT_EXIST}
    assert errors(l1.unsafe_read(some)) <= {L1Error.KEY_NOT_EXIST, L1Error.KEY_NOT_READABLE}
    assert errors(l1.reserve_write(some, [False] * 2, LAYOUT, "w")) == {L1Error.OUT_OF_MEMORY}
    assert l1.finish_write(keys("c"), "w")[keys("c")[0]] is L1Error.OUT_OF_MEMORY
    assert set(l1.delete(some).values()) == {L1Error.KEY_NOT_EXIST}
    assert L1Error.SUCCESS not in l1.finish_read(some).values()
    l1.touch_keys(some)
    l1.clear()
    assert not l1.memcheck() and not l1.report_status()["is_healthy"]


def test_chunks_that_are_no_kv_are_misses(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    l1 = start()
    some = keys("ab")
    store(l1, some[:1])
    l1._pool.put(some[1], bytes(NBYTES), meta=b"somebody's")
    found = l1.reserve_read(some)
    assert [found[k][0] for k in some] == [L1Error.SUCCESS, L1Error.KEY_NOT_EXIST]
    assert l1._pool.stats()["views"] == 1


def test_chunks_of_another_layout_are_misses(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine elsewhere has the model in another dtype, of the same size."""
    l1 = start()
    some = keys("ab")
    store(l1, some)
    (shape,) = LAYOUT.shapes
    other = MemoryLayoutDesc([shape], [torch.float16])
    group = MemoryLayoutDesc([torch.Size([NBYTES // 2])], LAYOUT.dtypes)
    l1.layouts.add("another model", 0, {0: other})
    l1.layouts.add("model", 1, {0: other})  # ranks are in keys
    assert errors(l1.reserve_read(some)) == {L1Error.SUCCESS}
    l1.finish_read(some)
    l1.layouts.add("model", 0, {0: other})
    assert errors(l1.reserve_read(some)) == {L1Error.KEY_NOT_EXIST}
    assert errors(l1.reserve_write(some, [False] * 2, other, "w")) == {L1Error.KEY_NOT_WRITABLE}
    assert len([log for log in caplog.records if "another layout" in log.getMessage()]) == 1
    assert l1._pool.stats()["views"] == 0
    # The same number of elements of the same dtype is the same KV, whatever its shape is called.
    l1.layouts.add("model", 0, {0: group})
    assert errors(l1.reserve_read(some)) == {L1Error.SUCCESS}


def test_what_it_says_of_itself(start: Start, pool_path: Path) -> None:
    l1 = start()
    store(l1, keys("ab"))
    l1.reserve_read(keys("a"))
    status = l1.report_status()
    assert status["is_healthy"] and status["read_locked_count"] == 1
    assert status["pool"]["paths"] == [str(pool_path)]
    assert status["pool"]["host"]["chunks"] == 2
    assert sum(l1.get_capacity_bytes_by_backend().values()) == l1.get_memory_usage()[1]
    assert l1.owns_device(str(pool_path)) and not l1.owns_device("/dev/null")
    assert l1.get_l1_memory_desc() is None
    for call in (l1.get_devdax_arena_statuses, lambda: l1.add_devdax_device("/dev/dax0.0", 1)):
        with pytest.raises(L1ReconfigureError):
            call()


def test_offsets_are_those_in_the_file(start: Start, pool_path: Path) -> None:
    l1 = start()
    some = keys("ab")
    store(l1, some)
    with pool_path.open("rb") as file:
        for k, (_, obj) in l1.reserve_read(some).items():
            file.seek(obj.shm_offset)
            assert file.read(obj.shm_byte_length) == content(k.chunk_hash).numpy().tobytes()


def test_close_with_everything_in_use(start: Start) -> None:
    l1 = start()
    some = keys("ab")
    store(l1, some)
    objs = [obj for _, obj in l1.reserve_read(some).values()]
    l1.reserve_write(keys("c"), [False], LAYOUT, "w")
    l1.close()
    l1.close()
    assert all(obj.raw_tensor is None and not obj.is_valid() for obj in objs)
    again = start()
    assert again.report_status()["pool"]["host"]["writing"] == 0
    assert errors(again.reserve_read(some)) == {L1Error.SUCCESS}


def test_a_closed_one_keeps_nothing_mapped(pool_path: Path) -> None:
    """Nor does what LMCache was told of it, which it never forgets."""
    l1 = BelugaL1(config(), Pool.open(pool_path, size=4 * MIB, extent_size=MIB, chunk_hint=NBYTES))
    store(l1, keys("ab"))
    l1.reserve_read(keys("ab"))
    assert str(pool_path) in Path("/proc/self/maps").read_text()
    l1.close()
    del l1
    gc.collect()
    assert str(pool_path) not in Path("/proc/self/maps").read_text()
