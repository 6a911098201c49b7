"""Processes that fork, stop, or die: the others go on, and what the dead held comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Child, wait_until

from lmcache_beluga import InvalidArgumentError, Pool, PoolBusyError, PutResult

pytestmark = pytest.mark.usefixtures("visibility")

MIB = 1 << 20

# ---- fork


FORKS = """
from lmcache_beluga import ForkedHandleError

path, ending = arguments
pool = Pool.open(path, size=64 << 20, heartbeat_ms=10)
keys = [b"%d" % i for i in range(10)]
pool.put_batch(keys, [key * 10_000 for key in keys])
view, views = pool.get(keys[0]), pool.get_batch(keys)
pool.pin(keys[1])
reservation = pool.reserve(1000)
pool.put(b"large", bytes(4 << 20))                  # wakes the copying threads

pid = os.fork()
if pid == 0:
    for call in (
        lambda: pool.get(b"0"), lambda: pool.get_batch(keys), lambda: pool.get_prefix(keys),
        lambda: pool.put(b"new", b"x"), lambda: pool.put_batch([b"new"], [b"x"]),
        lambda: pool.reserve(10), lambda: pool.contains(keys), lambda: pool.contains_prefix(keys),
        lambda: pool.read_into(b"0", bytearray(10_000)), lambda: pool.touch(keys),
        lambda: pool.remove(keys), lambda: pool.pin_prefix(keys), lambda: pool.evict(1),
        lambda: reservation.commit(b"mine"), pool.clear, pool.check, pool.stats, pool.inspect,
        lambda: list(pool.keys()),
    ):
        try:
            call()
        except ForkedHandleError as error:
            assert "before a fork" in str(error) and "Pool.attach" in str(error), error
        else:
            raise AssertionError("a forked handle works")
    assert view.array.tobytes() == b"0" * 10_000    # a stray read harms nobody
    assert not view.valid()
    view.release()
    del view
    reservation.abort()
    assert not pool.unpin(keys[1]) and pool.unpin_all() == 0
    with Pool.attach(path) as own:                  # a handle of its own works
        assert own.get(b"5").array.tobytes() == b"5" * 10_000
        own.put(b"from the child", bytes(4 << 20))
    pool.close()
    if ending == "exit":
        sys.exit(0)                                 # destructors and exit handlers run
    if ending == "leave everything":
        os._exit(0)
    del pool, views, reservation
    os.execv(sys.executable, [sys.executable, "-c", ""])

assert os.waitpid(pid, 0)[1] == 0
assert view.valid() and view.array.tobytes() == b"0" * 10_000
assert all(v.valid() for v in views)
assert pool.stats()["pins"] == 1
assert reservation.commit(b"mine") is PutResult.STORED
assert pool.contains([b"mine", b"from the child"]) == [True, True]
time.sleep(0.05)                                    # some heartbeats
assert not pool.closed and pool.check().ok, pool.check().errors
say("parent goes on")
hear()
pool.close()
"""


@pytest.mark.parametrize("ending", ["exit", "leave everything", "exec"])
def test_a_forked_handle_is_dead_and_harms_nobody(
    pool_path: Path, start_child: Callable[..., Child], ending: str
) -> None:
    child = start_child(FORKS, pool_path, ending)
    child.expect("parent goes on")
    with pytest.raises(PoolBusyError, match="in use"):  # its locks are still held
        Pool.format(pool_path)
    child.say("end")
    child.finish()
    Pool.format(pool_path)


def test_a_forked_child_keeps_no_lock_of_its_dead_parent(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    parent = start_child(
        """
        pool = Pool.open(arguments[0], size=16 << 20)
        reservation = pool.reserve(1000)
        if os.fork() == 0:
            say(os.getpid())  # it has given the locks up
            time.sleep(600)
        hear()
        """,
        pool_path,
    )
    orphan = int(parent.hear())
    parent.kill()
    try:
        with Pool.attach(pool_path) as pool:
            assert pool.stats()["writing"] == 0
        Pool.format(pool_path)
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_multiprocessing_workers_that_fork(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    child = start_child(
        """
        import multiprocessing
        pool = Pool.open(arguments[0], size=16 << 20)
        pool.put(b"key", b"x")

        def work(i):
            with Pool.attach(arguments[0]) as own:
                own.put(b"%d" % i, b"y")
                return own.contains([b"key"])[0]

        with multiprocessing.get_context("fork").Pool(3) as workers:
            assert all(workers.map(work, range(12)))
        assert all(pool.contains([b"%d" % i for i in range(12)]))
        assert pool.check().ok
        pool.close()
        say("done")
        """,
        pool_path,
    )
    child.expect("done")
    child.finish()


# ---- death


HOLDER = """
pool = Pool.attach(arguments[0], heartbeat_ms=10)
reservations = [pool.reserve(100_000) for _ in range(20)]
assert None not in reservations
views = pool.get_batch([b"%d" % i for i in range(10)])
assert pool.pin_prefix([b"%d" % i for i in range(5)]) == 5
pool.remove([b"9"])                # leased: it waits for its lease to end
say("holding")
hear()
"""


def test_what_a_killed_process_held_comes_back(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB, heartbeat_ms=10) as pool:
        pool.put_batch([b"%d" % i for i in range(10)], [bytes([i]) * 100_000 for i in range(10)])
        child = start_child(HOLDER, pool_path)
        child.expect("holding")
        stats = pool.stats()
        assert (stats["writing"], stats["closing"], stats["leased"]) == (20, 1, 10)
        assert pool.evict(1 << 40) == 0
        child.kill()
        wait_until(lambda: pool.stats()["swept_processes"] == 1)
        wait_until(lambda: pool.stats()["closing"] == 0)
        stats = pool.stats()
        assert (stats["writing"], stats["leased"], stats["chunks"]) == (0, 0, 9)
        assert pool.contains([b"%d" % i for i in range(10)]) == [True] * 9 + [False]
        assert pool.get(b"3").array.tobytes() == bytes([3]) * 100_000
        report = pool.check()
        assert report.ok, report.errors
        assert pool.evict(1 << 40) == 9 * 100_000


def test_what_the_last_process_held_comes_back_at_the_next_attach(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB) as pool:
        pool.put_batch([b"%d" % i for i in range(10)], [bytes([i]) * 100_000 for i in range(10)])
    child = start_child(HOLDER, pool_path)
    child.expect("holding")
    child.kill()
    with Pool.attach(pool_path) as pool:
        stats = pool.stats()
        assert (stats["writing"], stats["leased"], stats["closing"]) == (0, 0, 0)
        assert pool.contains([b"%d" % i for i in range(9)]) == [True] * 9
        assert pool.check().ok
        pool.clear()
        assert pool.stats()["extents_free"] == pool.info.extents


def test_killed_at_any_moment_of_a_store(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    """A few kills here; thousands of them are the stress tests' work."""
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB, heartbeat_ms=10) as pool:
        for round_ in range(6):
            child = start_child(
                """
                pool = Pool.attach(arguments[0])
                say("storing")
                for i in range(1_000_000):
                    pool.put(b"%s %d" % (arguments[1].encode(), i), b"%d" % i * 5000)
                """,
                pool_path,
                round_,
            )
            child.expect("storing")
            wait_until(lambda: pool.stats()["puts"] >= 40 * (round_ + 1))  # noqa: B023
            assert pool.stats()["swept_processes"] == round_
            child.kill()
            wait_until(lambda: pool.stats()["swept_processes"] == round_ + 1)  # noqa: B023
            report = pool.check()
            assert report.ok, report.errors
            assert pool.stats()["writing"] == 0
            entries = list(pool.keys())
            for entry in entries:
                view = pool.get(entry.record)
                assert view is None or view.array.tobytes() == entry.record.split()[1] * 5000


# ---- being stopped

_LOCKS_AND_UNLOCKS = """
    pool = Pool.attach(arguments[0], heartbeat_ms=10)
    say("ready")
    while True:
        pool.reserve(1000).abort()
"""


def test_a_stopped_lock_holder_costs_puts_and_nothing_else(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    with Pool.open(
        pool_path, size=16 * MIB, extent_size=MIB, heartbeat_ms=10, lock_timeout_ms=100
    ) as pool:
        assert pool.put(b"key", b"x" * 1000) is PutResult.STORED
        child = start_child(_LOCKS_AND_UNLOCKS, pool_path)
        child.expect("ready")
        for _ in range(10_000):
            child.stop()
            # More than once: on a busy machine it may be this process's own heartbeat that has it.
            if all(pool.reserve(1000) is None for _ in range(5)):
                break
            child.resume()
        else:
            pytest.fail("it never stops with the lock")
        assert pool.stats()["refused_busy"] >= 1
        # Readers take no lock: lookups and leases go on, and so does a newcomer.
        assert pool.contains([b"key"]) == [True]
        with pool.get(b"key") as view:
            assert view.array.tobytes() == b"x" * 1000
            assert view.valid()
        assert pool.read_into(b"key", bytearray(1000)) == 1000
        assert pool.pin(b"key")
        assert pool.unpin(b"key")
        with Pool.attach(pool_path, lock_timeout_ms=50) as newcomer:
            assert newcomer.get(b"key").array.tobytes() == b"x" * 1000
            assert newcomer.put(b"newcomer", b"x") is PutResult.REFUSED
            assert newcomer.reserve(1000) is None
        assert not pool.closed

        child.resume()
        wait_until(lambda: pool.put(b"later", b"x") is PutResult.STORED)
        child.kill()
        wait_until(lambda: pool.stats()["swept_processes"] >= 1)
        assert pool.put(b"at last", b"x") is PutResult.STORED
        report = pool.check()
        assert report.ok, report.errors


def test_a_killed_lock_holder_costs_nothing(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    with Pool.open(
        pool_path, size=16 * MIB, extent_size=MIB, heartbeat_ms=10, lock_timeout_ms=100
    ) as pool:
        for victim in range(10):
            child = start_child(_LOCKS_AND_UNLOCKS, pool_path)
            child.expect("ready")
            for attempt in range(1000):
                child.stop()
                if pool.put(b"%d attempt %d" % (victim, attempt), b"x") is PutResult.REFUSED:
                    break
                child.resume()
            child.kill()
            assert pool.put(b"key %d" % victim, b"x") is PutResult.STORED
            # On a busy machine it may have been this process's own heartbeat that had the lock.
            if pool.stats()["repaired"] >= 1:
                break
        assert pool.stats()["repaired"] >= 1
        wait_until(lambda: pool.stats()["writing"] == 0)
        report = pool.check()
        assert report.ok, report.errors


def test_a_process_stopped_past_its_leases_trusts_nothing(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB, heartbeat_ms=10) as pool:
        pool.put(b"key", b"x" * 1000)
        child = start_child(
            """
            pool = Pool.attach(arguments[0], heartbeat_ms=50, lease_ms=1500)
            view = pool.get(b"key")
            say("leased")
            hear()
            say(view.valid())
            hear()
            say(view.valid(), pool.stats()["lost_leases"], pool.get(b"key"))
            view.release()
            pool.close()
            """,
            pool_path,
        )
        child.expect("leased")
        child.stop()
        assert pool.evict(1 << 40) == 0
        child.resume()
        child.say("still?")
        child.expect("True")

        child.stop()
        wait_until(lambda: pool.evict(1 << 40) == 1000)
        pool.put(b"other", b"y" * 1000)
        child.say("and now?")
        child.resume()
        child.expect("False 1 None")
        child.finish()
        assert pool.check().ok


def test_a_host_that_slept_voids_its_leases(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    """Others may have thought it dead: after a late heartbeat no earlier lease counts."""
    child = start_child(
        """
        pool = Pool.open(arguments[0], size=16 << 20, heartbeat_ms=20, dead_after_ms=400)
        pool.put(b"key", b"x")
        view = pool.get(b"key")
        pool.pin(b"key")
        assert view.valid()
        say("leased")
        hear()
        deadline = time.monotonic() + 30
        while view.valid():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        while (again := pool.get(b"key")) is None:  # until a heartbeat says that this host lives
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with again:
            say(again.valid(), again.array.tobytes().decode())
        view.release()
        pool.close()
        """,
        pool_path,
    )
    child.expect("leased")
    child.stop()
    time.sleep(0.6)  # more than dead_after
    child.resume()
    child.say("go")
    child.expect("True x")
    child.finish()


def test_a_short_lease_is_renewed_for_as_long_as_it_is_held(pool_path: Path) -> None:
    with (
        Pool.open(
            pool_path, size=16 * MIB, heartbeat_ms=20, lease_ms=900, dead_after_ms=60_000
        ) as pool,
        Pool.attach(pool_path, heartbeat_ms=20, lease_ms=900, dead_after_ms=60_000) as other,
    ):
        pool.put(b"key", b"x" * 1000)
        pool.put(b"pinned", b"y")
        view = pool.get(b"key")
        assert pool.pin(b"pinned")
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            assert view.valid()
            assert other.evict(1 << 40) == 0
            time.sleep(0.02)
        assert view.array.tobytes() == b"x" * 1000
        view.release()
        assert pool.unpin(b"pinned")
        assert other.evict(1 << 40) == 1001
        assert pool.stats()["lost_leases"] == 0


def test_a_pin_that_nobody_takes_back_lapses(pool_path: Path) -> None:
    with Pool.open(pool_path, size=16 * MIB, heartbeat_ms=20, pin_timeout_ms=300) as pool:
        pool.put(b"key", b"x")
        assert pool.pin(b"key")
        assert pool.evict(1 << 40) == 0
        wait_until(lambda: pool.stats()["pins"] == 0)
        assert pool.stats()["leased"] == 0
        assert not pool.unpin(b"key")
        assert pool.evict(1 << 40) == 1


LENDS = """
path, seconds, ending = arguments
pool = Pool.attach(path, heartbeat_ms=10)
pool.put(b"lent " + seconds.encode(), b"x" * 1000)
view, slot = pool.get(b"lent " + seconds.encode()), pool.reserve(1000)
pool.lend(float(seconds))
say("lent")
hear()
if ending == "close":
    pool.close()
    view.release()
    slot.abort()
"""


@pytest.mark.parametrize("ending", ["kill", "close", "exit"])
def test_what_was_lent_stays_for_a_while(
    pool_path: Path, start_child: Callable[..., Child], ending: str
) -> None:
    """However the lender ends. When what others held is free again, and what was lent for a moment,
    what was lent for an hour is not."""
    with Pool.open(pool_path, size=8 * MIB, heartbeat_ms=10) as pool:
        children = [start_child(LENDS, pool_path, s, ending) for s in ("3600", "0", "0.2")]
        for child in children:
            child.expect("lent")
        assert pool.stats()["writing"] == 3
        for child in children:
            child.kill() if ending == "kill" else child.finish()
        wait_until(lambda: pool.stats()["writing"] == 1)
        wait_until(lambda: pool.stats()["leased"] <= 1)
        time.sleep(0.1)  # some heartbeats
        assert pool.stats()["writing"] == 1
    # The next process of the host cannot know since when: it waits for dead_after at most.
    with Pool.attach(pool_path, dead_after_ms=200, heartbeat_ms=10) as pool:
        assert pool.stats()["writing"] == 0
        assert pool.contains([b"lent 3600", b"lent 0", b"lent 0.2"]) == [True, True, True]
        assert pool.check().ok


def test_lend_refuses_nonsense(pool_path: Path) -> None:
    with Pool.open(pool_path, size=8 * MIB) as pool:
        for seconds in (-1, 3601):
            with pytest.raises(InvalidArgumentError, match="give 0 to 3600"):
                pool.lend(seconds)
        pool.lend(60)
        pool.lend(0)
