"""G4 to the letter: a process is killed between two instructions of one operation on the pool.

Random kills rarely meet the few stores between which an extent is cut anew or a slot changes hands.
Here the victim runs under ptrace, one instruction at a time: each is as likely as any other, on
coherent pools and on noncoherent ones, alone or next to another host.
``--steps 5000`` (or STRESS_STEPS) makes more trials.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lmcache_beluga.pool import Pool, PutResult, View

from .audit import await_no_demand, control_blocks, settle
from .host_pages import HostPages
from .schedule import Schedule
from .stepper import NEW, NEW_LARGE, OPERATIONS, SMALL

_EXTENT = 64 << 10
_EXTENTS = 5
#: Of the file: those extents and their metadata, which is larger.
_POOL = 12 * _EXTENT

#: Chunks in the pool before: none, some, or more than it has room for.
_FILLS = {"empty": 0, "half full": 40, "full": 140}

#: Instructions of the native module in which most operations end; attaching takes more.
_GUESS = {False: 12_000, True: 100_000}

#: Numbers of the chunks that a neighbour stores: they fit into an extent of its own.
_NEIGHBOURS = range(1000, 1010)

#: A survivor with this heartbeat sweeps after the dead within milliseconds.
_ALERT = {"heartbeat_ms": 1, "dead_after_ms": 1000}


@dataclass(frozen=True)
class Situation:
    """What a victim meets."""

    operation: str
    fill: str
    #: Another process is attached all the time; else the next one to attach recovers the host.
    survivor: bool
    #: The survivor has a view of the first chunk.
    leased: bool
    visibility: str
    #: Another host has chunks of its own, and a view of one of the victim's host.
    neighbour: bool


class Stepper:
    """The other side of ``stress.stepper``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stress.stepper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            # Else a third of all instructions would be the dynamic linker's.
            env={**os.environ, "LD_BIND_NOW": "1", "OPENBLAS_NUM_THREADS": "1"},
            text=True,
        )
        assert self._answer() == "ready"

    def run(self, operation: str, path: Path, count: int) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{operation} {path} {count}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(60)
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.endswith("\n"), "the victim's operation failed"
        return line.strip()


@pytest.fixture
def stepper() -> Iterator[Stepper]:
    stepper = Stepper()
    yield stepper
    stepper.close()


def test_killed_at_any_instruction(pool_path: Path, stepper: Stepper, schedule: Schedule) -> None:
    dice = random.Random(f"steps {schedule.seed}")
    #: How many instructions an operation takes, as far as is known.
    lengths: dict[Situation, int] = {}
    finished = 0
    started = time.monotonic()
    for trial in range(schedule.steps):
        situation = _draw(dice)
        count = dice.randint(1, lengths.get(situation, _GUESS[situation.operation == "attach"]))
        try:
            answer = _trial(stepper, situation, pool_path, count)
        except AssertionError as error:
            raise AssertionError(
                f"{situation}, killed after {count} instructions: {error}"
            ) from error
        if answer != "killed":
            lengths[situation] = int(answer.removeprefix("finished "))
            finished += 1
        if (trial + 1) % 40 == 0:
            took = time.monotonic() - started
            schedule.say(f"{trial + 1} trials, {finished} not killed in time, {took:.0f} s")


def _draw(dice: random.Random) -> Situation:
    survivor = dice.random() < 0.6
    fill = dice.choice(list(_FILLS))
    visibility = dice.choice(("coherent", "noncoherent"))
    return Situation(
        # Attaching takes many instructions, most of them the same ones over and over.
        operation="attach" if dice.random() < 0.03 else dice.choice(list(OPERATIONS)[:-1]),
        fill=fill,
        survivor=survivor,
        leased=survivor and fill == "half full" and dice.random() < 0.5,
        visibility=visibility,
        neighbour=visibility == "noncoherent" and dice.random() < 0.5,
    )


def _trial(stepper: Stepper, situation: Situation, path: Path, count: int) -> str:
    path.unlink(missing_ok=True)
    info = Pool.format(
        path,
        size=_POOL,
        extent_size=_EXTENT,
        chunk_hint=8 << 10,
        max_hosts=1 + situation.neighbour,
        visibility=situation.visibility,
    )
    assert info.extents == _EXTENTS
    pool = Pool.attach(path, **_ALERT)
    neighbour = _Neighbour(path) if situation.neighbour else None
    for number in range(_FILLS[situation.fill]):
        pool.put(b"%d" % number, _small(number))
    view: View | None = pool.get(b"0") if situation.leased else None
    if neighbour:
        neighbour.lease(b"1")
    if not situation.survivor:
        pool.close()
    answer = stepper.run(situation.operation, path, count)
    if neighbour:
        neighbour.go_on(cleared=situation.operation == "clear")
    if not situation.survivor:
        pool = Pool.attach(path, **_ALERT)
    with pool:
        if view is not None:
            assert view.valid() and np.array_equal(view.array, _small(0)), "a leased chunk changed"
            view.release()
        if neighbour:
            neighbour.rest()
        _verify([pool, neighbour.pool] if neighbour else [pool])
        if neighbour:
            neighbour.leave()
        _go_on(pool)
    assert control_blocks(info.uuid) == []
    return answer


class _Neighbour:
    """Another host, which nothing that happens to the victim's host may harm."""

    def __init__(self, path: Path) -> None:
        self.pool = Pool.attach(path, host_id=1, **_ALERT)
        for number in _NEIGHBOURS:
            assert self.pool.put(b"%d" % number, _small(number)) is PutResult.STORED
        self._path = path
        # So that none of them is evicted for the other host's sake.
        self._own = [self.pool.get(b"%d" % number) for number in _NEIGHBOURS]
        self._view: View | None = None
        self._leased = b""

    def lease(self, key: bytes) -> None:
        """Of a chunk of the victim's host, if it is there."""
        self._view, self._leased = self.pool.get(key), key

    def go_on(self, cleared: bool) -> None:
        """It reads, stores and removes, whatever the victim has left undone.

        ``cleared``: it may have been asked to clear its chunks away.
        """
        if self._view is not None:
            assert self._view.valid(), "the neighbour's lease was lost"
            assert np.array_equal(self._view.array, _small(int(self._leased)))
        for number, own in zip(_NEIGHBOURS, self._own, strict=True):
            assert own is not None and np.array_equal(own.array, _small(number)) and own.valid()
            view = self.pool.get(b"%d" % number)
            assert cleared or view is not None, "a chunk of the neighbour is gone"
            if view is not None:
                assert np.array_equal(view.array, _small(number))
                view.release()
        for number in range(_NEIGHBOURS.stop, _NEIGHBOURS.stop + 40):
            key = b"%d" % number
            assert self.pool.put(key, _small(number)) is PutResult.STORED
            assert self.pool.contains([key]) == [True]
        assert self.pool.remove([key])
        report = self.pool.check()
        assert report.ok, report.errors

    def rest(self) -> None:
        for view in self._own:
            assert view is not None and view.valid()
            view.release()
        if self._view is not None:
            assert self._view.valid() and np.array_equal(
                self._view.array, _small(int(self._leased))
            )
            self._view.release()

    def leave(self) -> None:
        """Its extents are free again."""
        self.pool.clear()
        assert settle(self.pool)["extents_owned"] == 0
        with HostPages(self._path) as pages:
            pages.await_answers()  # a clear is for all hosts
        self.pool.close()


def _verify(pools: Sequence[Pool]) -> None:
    """All space is accounted for, and every chunk is whole. ``pools``: a handle of each host."""
    for pool in pools:
        stats = settle(pool)
        left = {
            name: stats[name] for name in ("writing", "closing", "leased", "garbage") if stats[name]
        }
        assert not left, left
    await_no_demand(pools)
    reports = [pool.check() for pool in pools]
    for report in reports:
        assert report.ok, report.errors
        assert report.chunks + report.free == report.slots
    assert sum(report.lane_entries for report in reports) == report.chunks
    _account(pools)
    for pool in pools:
        _read_all(pool)


def _account(pools: Sequence[Pool]) -> None:
    """Every extent is somebody's or nobody's. One may just be changing hands."""
    deadline = time.monotonic() + 30
    while True:
        owned = sum(pool.stats()["extents_owned"] for pool in pools)
        free = pools[0].stats()["extents_free"]
        if owned + free == pools[0].info.extents:
            return
        assert time.monotonic() < deadline, f"{owned} extents are owned, {free} are free"
        time.sleep(0.01)


def _go_on(pool: Pool) -> None:
    """The pool works, and nothing of its space is lost."""
    for number in range(60):
        assert pool.put(b"%d" % number, _small(number)) is not PutResult.REFUSED
    for _ in range(6):
        assert pool.put(b"new large", NEW_LARGE) is not PutResult.REFUSED
        _read_all(pool)
        pool.remove([b"new large"])
    assert pool.check().ok
    pool.clear()
    assert pool.stats()["extents_free"] == pool.info.extents
    for number in range(pool.info.extents * 4):
        key = b"quarter %d" % number
        assert pool.put(key, np.zeros(_EXTENT // 4, dtype=np.uint8)) is PutResult.STORED
    assert pool.stats()["chunks"] == pool.info.extents * 4


def _read_all(pool: Pool) -> None:
    for entry in list(pool.keys()):
        if entry.record == b"new":
            expected = NEW
        elif entry.record == b"new large":
            expected = NEW_LARGE
        else:
            expected = _small(int(entry.record))
        view = _get(pool, entry.record)
        if view is None:
            assert pool.info.max_hosts > 1, f"{entry.record!r} is gone, and nobody made room"
            continue
        with view:
            assert np.array_equal(view.array, expected), f"{entry.record!r} has wrong bytes"


def _small(number: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.full(SMALL, number % 251, dtype=np.uint8)


def _get(pool: Pool, record: bytes) -> View | None:
    """None: it has gone since it was listed. Its host may have made room for the other one."""
    deadline = time.monotonic() + 30
    while True:
        view = pool.get(record)
        if view is not None or record not in [e.record for e in list(pool.keys())]:
            return view
        assert time.monotonic() < deadline, f"{record!r} is listed and cannot be read"
        time.sleep(0.01)
