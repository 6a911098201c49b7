"""Whole hosts go away and come back: killed, or stopped until the others take them for dead."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .board import Field, Phase
from .conductor import Conductor
from .crew import HANG_S, BrokenPromiseError
from .latency import Window, worst_ms

#: Operations that everybody else must finish while somebody is away.
_PROGRESS = 10

#: How long a host is away, as multiples of dead_after: also around the moments at which it fences
#: itself, and at which the others give it up.
_SHORT = (0.3, 0.5, 0.9, 1.0, 1.1)
_LONG = (1.2, 1.5, 2.5)


class Outages:
    """Lets hosts of a crew be away. ``dead_after_s``: after which the others take one for dead."""

    def __init__(self, conductor: Conductor, dead_after_s: float, dice: random.Random) -> None:
        self.happened: Counter[str] = Counter()
        #: The longest of each operation, by measure, in each window that was measured.
        self.worst_ms: list[tuple[Window, npt.NDArray[np.float64]]] = []
        self._conductor = conductor
        self._crew = conductor.crew
        self._dead_after_s = dead_after_s
        self._dice = dice

    @property
    def pauses(self) -> int:
        """Hosts that were stopped past dead_after and went on."""
        return self.happened["host paused"]

    def pause_host(self) -> None:
        """Stops a host past dead_after, then lets it go on: a zombie that holds leases."""
        hosts = self._some_hosts()
        away = [seat for host in hosts for seat in self._crew.seats_of(host)]
        measured = self._dice.random() < 0.7
        seconds = self._dead_after_s * self._dice.choice(_LONG)
        if measured:
            self._usual(seconds)
        for seat in away:
            self._crew.stop(seat)
        self._meanwhile(away, seconds, measured)
        for seat in self._shuffled(away):
            self._crew.resume(seat)
        self.happened["host paused"] += len(hosts)

    def pause_host_briefly(self) -> None:
        """Ends about when the others would take it for dead, or in death."""
        away = self._crew.seats_of(self._dice.randrange(self._crew.hosts))
        for seat in self._shuffled(away):
            self._crew.stop(seat)
        self._meanwhile(away, self._dead_after_s * self._dice.choice(_SHORT + _LONG), False)
        if self._dice.random() < 0.4:
            self._conductor.replace(away)
            self.happened["host killed while it was stopped"] += 1
            return
        for seat in self._shuffled(away):
            self._crew.resume(seat)
        self.happened["host paused briefly"] += 1

    def kill_host(self) -> None:
        """All processes of a host at once. It stays away for a while."""
        hosts = self._some_hosts()
        away = [seat for host in hosts for seat in self._crew.seats_of(host)]
        measured = self._dice.random() < 0.4
        seconds = self._dead_after_s * self._dice.choice(_LONG if measured else (0.0, *_SHORT))
        if measured:
            self._usual(seconds)
        dead = self._conductor.kill(self._shuffled(away))
        self._conductor.kills_by_kind["host"] += len(away)
        if seconds:
            self._meanwhile(away, seconds, measured)
            self._conductor.bury(dead)
            self._conductor.enlist(away)
        else:
            self._conductor.enlist(away)
            self._conductor.bury(dead)
        self.happened["host killed"] += len(hosts)

    def pause_process(self) -> None:
        """One process alone, whatever it holds."""
        seat = self._dice.randrange(self._crew.seats)
        if self._crew.board.seat(seat)[Field.PHASE] != Phase.RUNNING:
            return  # whoever wants to join its host would wait for it
        self._crew.stop(seat)
        self._meanwhile([seat], self._dead_after_s * self._dice.choice(_SHORT + _LONG), False)
        if self._dice.random() < 0.3:
            self._conductor.replace([seat])
        else:
            self._crew.resume(seat)
        self.happened["process paused"] += 1

    # ---- while somebody is away

    def _some_hosts(self) -> list[int]:
        """One, or sometimes all but one."""
        hosts = self._crew.hosts
        number = hosts - 1 if hosts > 2 and self._dice.random() < 0.15 else 1
        return self._dice.sample(range(hosts), number)

    def _shuffled(self, seats: Sequence[int]) -> list[int]:
        return self._dice.sample(seats, len(seats))

    def _usual(self, seconds: float) -> None:
        """Everybody is well, for as long as somebody will be away: what that is compared with."""
        self._await_progress(range(self._crew.seats), frozenset())
        self._measure(Window.USUAL, seconds)

    def _measure(self, kind: Window, seconds: float) -> None:
        board = self._crew.board
        before = board.latencies()[kind - 1]
        board.open_window(kind)
        time.sleep(seconds)
        board.open_window(Window.UNMEASURED)
        added = board.latencies()[kind - 1] - before
        self.worst_ms.append((kind, np.apply_along_axis(worst_ms, -1, added)))

    def _meanwhile(self, away: Sequence[int], seconds: float, measured: bool) -> None:
        """The others are looked at, killed now and then, or left alone to be measured."""
        gone = frozenset(away)
        others = [seat for seat in range(self._crew.seats) if seat not in gone]
        until = time.monotonic() + seconds
        if measured:
            self._measure(Window.OUTAGE, seconds)
        while time.monotonic() < until:
            if others and self._dice.random() < 0.7:
                self._conductor.strike(others)
            else:
                time.sleep(0.02)
        self._await_progress(others, gone)

    def _await_progress(self, seats: Sequence[int], away: frozenset[int]) -> None:
        before = {seat: self._crew.done(seat) for seat in seats}
        deadline = time.monotonic() + HANG_S
        while any(self._crew.done(seat) < done + _PROGRESS for seat, done in before.items()):
            self._crew.watch(away)
            if time.monotonic() > deadline:
                raise BrokenPromiseError(f"while {set(away)} are away, others make no progress")
            time.sleep(0.005)
