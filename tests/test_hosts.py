"""Several hosts on one pool: who owns what matters to nobody, and capacity goes where it is needed.

Each attach with a host id of its own is a host of its own, with its own control block, heartbeat
and leases, whether it lives in this process or in another one.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Child, wait_until

from lmcache_beluga import HostInUseError, Pool, PoolClosedError, PutResult

MIB = 1 << 20
SIZE = 40_000
#: Longer than a busy machine keeps a heartbeat waiting: a late host's leases are void.
DEAD_AFTER_MS = 2000
TIMES: dict[str, Any] = {"heartbeat_ms": 10, "dead_after_ms": DEAD_AFTER_MS, "lease_ms": 2000}


def payload(key: bytes, size: int = SIZE) -> bytes:
    return np.random.default_rng(list(key)).bytes(size)


def keys(name: str, count: int) -> list[bytes]:
    return [f"{name}-{i}".encode() for i in range(count)]


def fill(pool: Pool, wanted: list[bytes], pause: float = 0) -> None:
    for key in wanted:
        assert pool.put(key, payload(key)) is PutResult.STORED
        if pause:
            time.sleep(pause)


def right(pool: Pool, key: bytes) -> bool:
    """Is the chunk there? Then with its bytes."""
    buffer = bytearray(SIZE)
    if pool.read_into(key, buffer) is None:
        return False
    assert bytes(buffer) == payload(key)
    return True


@pytest.fixture(params=["coherent", "noncoherent"])
def path(request: pytest.FixtureRequest, pool_path: Path) -> Path:
    """A pool of 24 extents of 1 MiB, with room for four hosts."""
    Pool.format(
        pool_path,
        size=28 * MIB,
        extent_size=MIB,
        chunk_hint=SIZE,
        max_hosts=4,
        visibility=request.param,
    )
    return pool_path


@pytest.fixture
def hosts(path: Path) -> Iterator[list[Pool]]:
    """Hosts 0 to 3."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Pool.attach(path, host_id=n, **TIMES)) for n in range(4)]
        with Pool.attach(path, host_id=0, **TIMES) as pool:
            report = pool.check()
            assert report.ok, report.errors


def test_each_host_finds_what_each_stored(hosts: list[Pool]) -> None:
    stored = {n: keys(f"of-{n}", 30) for n in range(4)}
    for n, pool in enumerate(hosts):
        assert set(pool.put_batch(stored[n], [payload(key) for key in stored[n]])) == {
            PutResult.STORED
        }
    for pool in hosts:
        for wanted in stored.values():
            assert pool.contains_prefix(wanted) == len(wanted)
            assert all(right(pool, key) for key in wanted)
            assert pool.put(wanted[0], b"other") is PutResult.DUPLICATE
    assert {entry.host for entry in hosts[0].keys()} == {0, 1, 2, 3}  # noqa: SIM118


def test_a_chunk_is_removed_by_a_host_that_does_not_own_it(hosts: list[Pool]) -> None:
    owner, asker, third = hosts[:3]
    fill(owner, wanted := keys("chunk", 20))
    with third.get(wanted[3]) as view:
        assert asker.remove([*wanted, b"absent"]) == len(wanted)
        wait_until(lambda: not any(any(pool.contains(wanted)) for pool in hosts))
        # Whoever reads it reads on.
        assert view.array.tobytes() == payload(wanted[3])
        assert view.valid()
        assert owner.stats()["closing"] == 1
    wait_until(lambda: owner.stats()["closing"] == 0)
    assert owner.put(wanted[0], b"again") is PutResult.STORED


def test_every_copy_of_a_key_is_removed(hosts: list[Pool]) -> None:
    # Two hosts that store one key at once both succeed.
    slots = [pool.reserve(SIZE) for pool in hosts[:2]]
    for slot in slots:
        slot.array[:] = np.frombuffer(payload(b"twice"), np.uint8)
    first = [slot.commit(b"twice") for slot in slots]
    assert PutResult.STORED in first
    assert hosts[2].remove([b"twice"]) == 1
    wait_until(lambda: not any(pool.contains([b"twice"])[0] for pool in hosts))
    wait_until(lambda: all(pool.stats()["chunks"] == 0 for pool in hosts))


def test_more_is_removed_than_a_ring_of_requests_holds(hosts: list[Pool]) -> None:
    owner, asker = hosts[:2]
    wanted = keys("many", 400)
    for key in wanted:
        assert owner.put(key, b"x" * 900) is PutResult.STORED
    assert asker.remove(wanted) == len(wanted)
    wait_until(lambda: not any(asker.contains(wanted)))
    assert owner.stats()["chunks"] == 0


def test_clear_is_for_all_hosts(hosts: list[Pool]) -> None:
    for n, pool in enumerate(hosts):
        fill(pool, keys(f"of-{n}", 10))
    assert hosts[2].clear() == 10
    wait_until(lambda: all(pool.stats()["chunks"] == 0 for pool in hosts))
    assert not any(hosts[0].contains([key for n in range(4) for key in keys(f"of-{n}", 10)]))


def test_a_host_that_joins_has_nothing_to_do_with_earlier_requests(path: Path) -> None:
    with Pool.attach(path, host_id=0, **TIMES) as first:
        first.clear()
        with Pool.attach(path, host_id=1, **TIMES) as late:
            fill(late, wanted := keys("new", 5))
            time.sleep(0.2)
            assert all(first.contains(wanted))


def test_a_dead_owner_removes_when_it_is_back(
    path: Path, start_child: Callable[..., Child]
) -> None:
    child = start_child(_STORES, path, 1)
    child.expect("stored")
    with Pool.attach(path, host_id=0, **TIMES) as pool:
        child.kill()
        wanted = keys("child", 10)
        assert all(right(pool, key) for key in wanted)  # the dead one's chunks are there
        assert pool.remove(wanted[:5]) == 5
        with Pool.attach(path, host_id=1, **TIMES):
            wait_until(lambda: not any(pool.contains(wanted[:5])))
            assert all(right(pool, key) for key in wanted[5:])


_STORES = """
import numpy as np
from test_hosts import TIMES, fill, keys
pool = Pool.attach(arguments[0], host_id=int(arguments[1]), **TIMES)
fill(pool, keys("child", 10))
say("stored")
hear()
pool.close()
"""


def test_a_pool_that_one_host_has_filled_serves_all(hosts: list[Pool]) -> None:
    first = hosts[0]
    fill(first, keys("old", 800))  # more than fits
    assert first.stats()["extents_free"] == 0
    # Each of the others gets room, and what it stores last stays.
    time.sleep(0.5)
    for n, pool in enumerate(hosts[1:], 1):
        mine = keys(f"of-{n}", 20)

        def stored(pool: Pool = pool, mine: list[bytes] = mine) -> bool:
            pool.put_batch(mine, [payload(key) for key in mine])
            return all(pool.contains(mine))

        wait_until(stored)
        assert all(right(reader, key) for reader in hosts for key in mine)
        assert pool.stats()["extents_owned"] >= 1


def test_a_burst_of_one_host_can_use_most_of_the_pool(hosts: list[Pool]) -> None:
    first, second = hosts[:2]
    extents = first.info.extents
    fill(first, keys("old", extents * 24))
    owned = first.stats()["extents_owned"]
    assert owned >= extents - 1
    time.sleep(1.2)  # what it stored is cold now
    burst = iter(keys("burst", 1_000_000))

    def most() -> bool:
        for key in itertools.islice(burst, 50):
            second.put(key, payload(key))
        return second.stats()["extents_owned"] >= 0.75 * extents

    wait_until(most, 60)


def test_the_coldest_chunks_of_the_pool_go_first_whoever_owns_them(hosts: list[Pool]) -> None:
    """One host needs room: what another host has not used for long goes before what it uses."""
    first, second = hosts[:2]
    extents = first.info.extents
    per_extent = MIB // SIZE
    cold, hot = keys("cold", extents // 2 * per_extent), keys("hot", extents // 4 * per_extent)
    fill(first, cold)
    time.sleep(1.5)
    fill(first, hot)
    new = iter(keys("new", 1_000_000))

    def cold_ones_go() -> bool:
        for key in itertools.islice(new, 10):
            second.put(key, payload(key))
        assert first.touch(hot) >= 0.9 * len(hot)
        return sum(first.contains(cold)) < 0.3 * len(cold)

    wait_until(cold_ones_go)


def test_a_leased_chunk_stays_whoever_wants_its_room(hosts: list[Pool]) -> None:
    owner, reader, other = hosts[:3]
    fill(owner, keys("old", 700))
    held = [view for view in reader.get_batch(keys("old", 700)) if view is not None][-30:]
    kept = {view.record: view.array.tobytes() for view in held}
    time.sleep(0.3)
    for key in keys("new", 1500):
        other.put(key, payload(key))
    for view in held:
        assert view.array.tobytes() == kept[view.record] == payload(view.record)
        assert view.valid()
    assert owner.stats()["lost_leases"] + reader.stats()["lost_leases"] == 0


def test_an_idle_host_gives_back_what_it_does_not_need(hosts: list[Pool]) -> None:
    first, second = hosts[:2]
    fill(first, wanted := keys("old", 500))
    first.remove(wanted)
    before = first.stats()["extents_owned"]
    assert before > first.info.extents // 2
    new = iter(keys("new", 1_000_000))

    def given() -> bool:
        for key in itertools.islice(new, 20):
            second.put(key, payload(key))
        return first.stats()["extents_owned"] <= 1

    wait_until(given)


# ---- retirement


def test_a_retired_host_leaves_its_extents_to_the_others(path: Path) -> None:
    with Pool.attach(path, host_id=0, **TIMES) as stays:
        leaves = Pool.attach(path, host_id=1, **TIMES)
        fill(leaves, wanted := keys("old", 400))
        taken = leaves.stats()["extents_owned"]
        assert taken > 15
        assert leaves.retire()
        assert leaves.closed
        assert "retired" in leaves.close_reason
        with pytest.raises(PoolClosedError, match="retired"):
            leaves.put(b"late", b"x")
        assert not any(stays.contains(wanted))
        assert stays.stats()["extents_free"] == stays.info.extents
        fill(stays, more := keys("new", 400))
        assert stays.stats()["extents_owned"] >= taken
        assert sum(stays.contains(more)) > 390
        states = {host.id: host.state for host in Pool.hosts(path)}
        assert states == {0: "member", 1: "retired"}
        with Pool.attach(path, host_id=1, **TIMES) as again:
            assert sum(again.contains(more)) > 390
            assert again.put(b"back", b"x") is PutResult.STORED
            assert stays.get(b"back").array.tobytes() == b"x"
            assert stays.check().ok


def test_retirement_waits_for_the_readers_of_other_hosts(path: Path) -> None:
    with Pool.attach(path, host_id=0, **TIMES) as reader:
        leaves = Pool.attach(path, host_id=1, **TIMES)
        fill(leaves, wanted := keys("old", 40))
        view = reader.get(wanted[7])
        assert not leaves.retire(timeout_ms=300)
        assert not leaves.closed
        with pytest.raises(PoolClosedError, match="retired"):
            leaves.put(b"late", b"x")
        assert view.array.tobytes() == payload(wanted[7])
        assert view.valid()
        view.release()
        assert leaves.retire(timeout_ms=30_000)


def test_a_host_with_other_processes_is_not_retired(
    path: Path, start_child: Callable[..., Child]
) -> None:
    child = start_child(_STORES, path, 2)
    child.expect("stored")
    with Pool.attach(path, host_id=2, **TIMES) as pool:
        with pytest.raises(HostInUseError, match="host 2 has other processes attached"):
            pool.retire()
        assert all(pool.contains(keys("child", 10)))
        child.say("go")
        child.finish()
        assert pool.retire()


def test_the_space_of_a_killed_host_comes_back_when_it_is_retired(
    path: Path, start_child: Callable[..., Child]
) -> None:
    child = start_child(
        """
        from test_hosts import SIZE, TIMES, fill, keys
        pool = Pool.attach(arguments[0], host_id=3, **TIMES)
        fill(pool, keys("child", 300))
        views = pool.get_batch(keys("child", 20))
        half = [pool.reserve(SIZE) for _ in range(5)]
        say("stored")
        hear()
        """,
        path,
    )
    child.expect("stored")
    with Pool.attach(path, host_id=0, **TIMES) as stays:
        child.kill()
        assert stays.contains_prefix(keys("child", 200)) == 200
        with Pool.attach(path, host_id=3, takeover=True, **TIMES) as dead:
            assert dead.retire()
        assert stays.stats()["extents_free"] == stays.info.extents
        fill(stays, keys("new", 400))
        assert stays.check().ok


# ---- what can be seen from outside


def test_hosts_are_seen_without_attaching(path: Path, start_child: Callable[..., Child]) -> None:
    assert Pool.hosts(path) == []
    child = start_child(_STORES, path, 1)
    child.expect("stored")
    with Pool.attach(path, host_id=3, **TIMES):
        pass
    live, left = Pool.hosts(path)
    assert (live.id, live.state, live.live, live.left, live.attached) == (
        1,
        "member",
        True,
        False,
        True,
    )
    assert (live.extents, live.dead_after_ms, live.silent_ms) == (1, DEAD_AFTER_MS, 0)
    assert (left.id, left.state, left.live, left.left, left.attached) == (
        3,
        "member",
        False,
        True,
        False,
    )
    child.stop()
    stopped = Pool.hosts(path)[0]
    assert (stopped.live, stopped.attached) == (False, True)
    assert stopped.silent_ms >= DEAD_AFTER_MS
    child.kill()
    dead = Pool.hosts(path)[0]
    assert (dead.live, dead.left, dead.attached) == (False, False, False)
    assert Pool.hosts(path, watch_ms=50)[0].silent_ms < DEAD_AFTER_MS


def test_a_host_that_wants_room_says_so(hosts: list[Pool], path: Path) -> None:
    fill(hosts[0], keys("old", 700))
    held = hosts[0].get_batch(keys("old", 700))  # nothing of it can go
    for key in keys("new", 100):
        hosts[1].put(key, payload(key))
    assert Pool.hosts(path)[1].pressure > 0
    hosts[1].close()
    left = Pool.hosts(path)[1]
    assert left.left and left.pressure == 0, "others would evict for a host that is not there"
    assert any(held)


def test_a_host_that_joins_a_warm_pool_can_store(path: Path) -> None:
    """Nothing in the pool is cold, and the host that joins owns nothing that it could evict."""
    warm, new = keys("warm", 700), keys("new", 10)
    with (
        Pool.attach(path, host_id=0, **TIMES) as owner,
        Pool.attach(path, host_id=1, **TIMES) as late,
    ):
        fill(owner, warm)
        others = Pool.hosts(path)[0].extents
        deadline = time.monotonic() + 20
        while not all(late.contains(new)):
            assert time.monotonic() < deadline, "a host can store nothing"
            for key in new:
                late.put(key, payload(key))
            for key in warm:  # so that nothing of it is as old as a second
                right(owner, key)
        assert all(right(owner, key) for key in new)
        one, two = Pool.hosts(path)
        assert (one.extents, two.extents) == (others - 1, 1)


def test_several_threads_check_at_once(hosts: list[Pool]) -> None:
    fill(hosts[0], keys("old", 100))
    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(lambda _: hosts[0].check(), range(40)))
    assert all(report.ok and report.chunks == 100 for report in reports)
