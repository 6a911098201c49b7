"""Processes that are stopped past their lease trust nothing stale, and nobody waits for them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import Child

from lmcache_beluga.pool import Pool

from .audit import audit, control_blocks, refill
from .board import Field, Phase
from .conductor import Conductor, Round
from .content import Keyspace
from .crew import HANG_S, BrokenPromiseError, Crew
from .schedule import Schedule

_SEATS = 5
_EXTENT = 512 << 10
_POOL = 16 << 20

#: Milliseconds: leases so short that any pause outlives them.
_TIMES = {"lease_ms": 200, "heartbeat_ms": 20, "dead_after_ms": 400, "lock_timeout_ms": 100}

_STORM_S = 30.0
_ROUNDS = 3

_READER = f"""
    pool = Pool.attach(arguments[0], **{_TIMES})
    views = [pool.get(key.encode()) for key in arguments[1:]]
    assert all(view.valid() for view in views)
    say("holding")
    hear()  # stopped here
    say(*(view.valid() for view in views))

    def readable(key):
        view = pool.get(key.encode())
        return view is not None and view.valid()

    # Nothing can be leased before the host has given a sign of life.
    deadline = time.monotonic() + 30
    while not readable(arguments[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    say(*(readable(key) for key in arguments[1:]))
    say(pool.stats()["lost_leases"])
    pool.close()
"""


@pytest.mark.parametrize("visibility", ["coherent", "noncoherent"])
def test_a_view_does_not_outlive_the_lease_of_a_stopped_process(
    pool_path: Path, start_child: Callable[..., Child], visibility: str
) -> None:
    info = Pool.format(pool_path, size=_POOL, extent_size=_EXTENT, visibility=visibility)
    with Pool.attach(pool_path, **_TIMES) as pool:
        old, new = (np.full(100_000, value, dtype=np.uint8) for value in (1, 2))
        for key in (b"a", b"b"):
            pool.put(key, old)
        reader = start_child(_READER, pool_path, "a", "b")
        reader.expect("holding")
        assert pool.evict(_POOL) == 0  # G3: both are leased
        reader.stop()
        while pool.evict(_POOL) == 0:  # until the leases have run out
            time.sleep(0.02)
        assert pool.contains([b"a", b"b"]) == [False, False]
        pool.put(b"a", new)
        reader.resume()
        reader.say("go on")
        reader.expect("False False")
        reader.expect("True False")
        assert int(reader.hear()) >= 2
        reader.finish()
    assert control_blocks(info.uuid) == []


@pytest.mark.parametrize("visibility", ["coherent", "noncoherent"])
def test_a_view_of_a_stopped_host_dies(
    pool_path: Path, start_child: Callable[..., Child], visibility: str
) -> None:
    """Nobody of the host was awake: others may have taken it for dead, and evicted its leases."""
    info = Pool.format(pool_path, size=_POOL, extent_size=_EXTENT, visibility=visibility)
    with Pool.attach(pool_path, **_TIMES) as pool:
        pool.put(b"a", np.ones(1000, dtype=np.uint8))
    reader = start_child(_READER, pool_path, "a")
    reader.expect("holding")
    reader.stop()
    time.sleep(2 * _TIMES["dead_after_ms"] / 1000)
    reader.resume()
    reader.say("go on")
    reader.expect("False")
    reader.expect("True")  # the chunk is still there, for whoever leases it anew
    assert int(reader.hear()) >= 1
    reader.finish()
    assert control_blocks(info.uuid) == []


def test_stopped_processes_block_nobody(pool_path: Path, schedule: Schedule) -> None:
    info = Pool.format(pool_path, size=_POOL, extent_size=_EXTENT, chunk_hint=16 << 10)
    keyspace = Keyspace(_SEATS)
    started = time.monotonic()
    pauses = 0
    with Crew(pool_path, _SEATS, _TIMES) as crew:
        conductor = Conductor(crew, schedule.seed)
        dice = random.Random(f"pauses {schedule.seed}")
        for number in range(_ROUNDS):
            conductor.begin(Round(number, number, False, violent_end=number % 2 == 0))
            until = time.monotonic() + _STORM_S / _ROUNDS
            while time.monotonic() < until:
                pauses += _pause(crew, conductor, dice)
            early = None if number % 2 == 0 else Pool.attach(pool_path, **_TIMES)
            conductor.end()
            with early or Pool.attach(pool_path, **_TIMES) as pool:
                chunks = audit([pool], keyspace)
                schedule.say(
                    f"{pauses} pauses, {crew.total(Field.DONE)} operations, {chunks} survive"
                )
                if number == _ROUNDS - 1:
                    refill([pool], _EXTENT // 4)
                    counters = pool.stats()
        schedule.report(crew, counters, time.monotonic() - started)
    assert control_blocks(info.uuid) == []


def _pause(crew: Crew, conductor: Conductor, dice: random.Random) -> int:
    """Stops some workers, sees the others go on, then resumes or kills them. Returns how many."""
    number = dice.choice((1, 1, 1, 2, crew.seats))
    chosen = dice.sample(range(crew.seats), number)
    time.sleep(dice.uniform(0.02, 0.2))
    stopped = frozenset(s for s in chosen if crew.board.seat(s)[Field.PHASE] == Phase.RUNNING)
    for seat in stopped:
        crew.stop(seat)
    before = {seat: crew.done(seat) for seat in range(crew.seats) if seat not in stopped}
    time.sleep(dice.choice((0.05, 0.3, 0.8)))
    deadline = time.monotonic() + HANG_S
    while any(crew.done(seat) < done + 20 for seat, done in before.items()):
        crew.watch(stopped)
        if time.monotonic() > deadline:
            raise BrokenPromiseError(f"while {set(stopped)} are stopped, others make no progress")
        time.sleep(0.005)
    for seat in stopped:
        if dice.random() < 0.2:
            conductor.replace([seat])
        else:
            crew.resume(seat)
    crew.watch()
    return len(stopped)
