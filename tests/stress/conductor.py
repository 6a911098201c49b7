"""Draws, from a seed, whom to kill or stop when, and does it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .board import OPERATIONS, Field, Phase
from .crew import Crew
from .worker import FLAVOURS, Orders

#: How long to wait for a worker to come into the situation in which it is to be killed.
_PATIENCE_S = 0.05

#: How often each kind of death is drawn.
KINDS = {
    "anytime": 36,
    "operating": 22,
    "holding": 18,
    "attaching": 10,
    "two": 6,
    "restarting": 4,
    "all": 3,
    "all, twice": 1,
}

_DEADLY_OPERATIONS = (
    "put",
    "put_batch",
    "reserve",
    "commit",
    "commit_view",
    "abort",
    "get",
    "get_batch",
    "read_into",
    "release",
    "pin",
    "unpin",
    "remove",
    "evict",
    "clear",
    "close",
)


@dataclass(frozen=True)
class Stroke:
    """One decision. Drawn before anything happens, so that a seed always gives the same ones."""

    kind: str
    seat: int
    other: int
    operation: int
    held: Field
    #: Seconds to wait first.
    pause: float
    #: Seconds to wait once the situation is there.
    delay: float


@dataclass(frozen=True)
class Round:
    """What the workers between two audits have in common."""

    number: int
    flavour: int
    clears: bool
    #: End by killing everybody, so that the audit's own handle recovers the host.
    violent_end: bool


class Conductor:
    """Keeps a crew at work and kills it, one seed's worth.

    ``kinds``: how often each kind of death is drawn. ``rest``, ``damage``: see
    :class:`.worker.Orders`.
    """

    def __init__(
        self,
        crew: Crew,
        seed: int,
        kinds: Mapping[str, int] = KINDS,
        rest: float = 0.0,
        damage: str = "",
    ) -> None:
        self.crew = crew
        self.kills = 0
        self.kills_by_kind: Counter[str] = Counter()
        self._kinds = kinds
        self._rest = rest
        self._damage = damage
        self._seed = seed
        self._dice = random.Random(f"conductor {seed}")
        self._starts = 0
        self._among: list[int] = []
        self._round = Round(0, 0, False, False)

    def rounds(self) -> Iterator[Round]:
        """Endless."""
        number = 0
        while True:
            yield Round(
                number,
                self._dice.randrange(len(FLAVOURS)),
                clears=self._dice.random() < 0.3,
                violent_end=self._dice.random() < 0.5,
            )
            number += 1

    def begin(self, now: Round) -> None:
        """Starts a worker on every seat."""
        self._round = now
        self.enlist(range(self.crew.seats))

    def end(self) -> None:
        """Ends all workers: killed, or asked to leave."""
        seats = list(self.crew.pids)
        if self._round.violent_end:
            self.bury(self.kill(seats))
        else:
            self.crew.dismiss(seats)

    def strike(self, among: Sequence[int] | None = None) -> None:
        """Kills one worker or several, and starts others at once.

        ``among``: the seats that may be struck; all of them by default.
        """
        self._among = list(range(self.crew.seats)) if among is None else list(among)
        stroke = self._draw()
        time.sleep(stroke.pause)
        self.crew.watch(frozenset(self.crew.pids) - frozenset(self._among))
        before = self.kills
        getattr(self, "_" + stroke.kind.replace(", ", "_"))(stroke)
        self.kills_by_kind[stroke.kind] += self.kills - before

    # ---- ways to die

    def _anytime(self, stroke: Stroke) -> None:
        self.replace([stroke.seat])

    def _busy(self, stroke: Stroke) -> None:
        """In the middle of whatever operation comes next."""
        words = self.crew.board.seat(stroke.seat)
        self._await(lambda: words[Field.OPERATION] != 0)
        self._spin(stroke.delay)
        self.replace([stroke.seat])

    def _operating(self, stroke: Stroke) -> None:
        """In the middle of a certain operation."""
        words = self.crew.board.seat(stroke.seat)
        self._await(lambda: words[Field.OPERATION] == stroke.operation)
        self._spin(stroke.delay)
        self.replace([stroke.seat])

    def _holding(self, stroke: Stroke) -> None:
        """With leased views, pins or reserved slots in hand."""
        words = self.crew.board.seat(stroke.seat)
        self._await(lambda: words[stroke.held] > 0)
        self._spin(stroke.delay)
        self.replace([stroke.seat])

    def _attaching(self, stroke: Stroke) -> None:
        """While it joins the others."""
        self.replace([stroke.seat])
        self._await(lambda: self.crew.board.seat(stroke.seat)[Field.PHASE] >= Phase.ATTACHING)
        self._spin(stroke.delay)
        self.replace([stroke.seat])

    def _two(self, stroke: Stroke) -> None:
        self.replace(sorted({stroke.seat, stroke.other}))

    def _restarting(self, stroke: Stroke) -> None:
        """One leaves in an orderly way and is killed while it does."""
        self.crew.board.seat(stroke.seat)[Field.STOP] = 1
        words = self.crew.board.seat(stroke.seat)
        closing = OPERATIONS.index("close")
        self._await(lambda: words[Field.OPERATION] == closing or words[Field.PHASE] == Phase.GONE)
        self._spin(stroke.delay)
        pid = self.crew.kill(stroke.seat)
        self.enlist([stroke.seat])
        self.kills += self.crew.bury(pid, may_have_left=True)

    def _all(self, stroke: Stroke) -> None:
        """Nobody is left: the first of the new ones recovers the host, the others wait for it."""
        self.replace(self._among)

    def _all_twice(self, stroke: Stroke) -> None:
        """Also the one that recovers is killed."""
        self.replace(self._among)
        first = self.crew.board.seat(self._among[0])
        self._await(lambda: first[Field.PHASE] >= Phase.ATTACHING)
        self._spin(stroke.delay)
        self.replace(self._among)

    # ---- how it is done

    def _draw(self) -> Stroke:
        dice = self._dice
        return Stroke(
            kind=dice.choices(list(self._kinds), list(self._kinds.values()))[0],
            seat=dice.choice(self._among),
            other=dice.choice(self._among),
            operation=OPERATIONS.index(dice.choice(_DEADLY_OPERATIONS)),
            held=dice.choice((Field.VIEWS, Field.RESERVATIONS, Field.PINS)),
            pause=min(dice.expovariate(1 / 0.025), 0.2),
            delay=dice.choice((20e-6, 100e-6, 500e-6)) * dice.random(),
        )

    def replace(self, seats: Sequence[int]) -> None:
        """Kills workers and starts others in their seats."""
        dead = self.kill(seats)
        self.enlist(seats)  # before the kernel has buried the old ones
        self.bury(dead)

    def kill(self, seats: Sequence[int]) -> set[int]:
        """Kills workers and leaves their seats empty. Returns the pids, to be buried."""
        self.kills += len(seats)
        return {self.crew.kill(seat) for seat in seats}

    def bury(self, pids: set[int]) -> None:
        for pid in pids:
            self.crew.bury(pid)

    def enlist(self, seats: Sequence[int]) -> None:
        """Starts workers on empty seats."""
        now = self._round
        for seat in seats:
            self._starts += 1
            seed = f"{self._seed}/{self._starts}"
            orders = Orders(seat, seed, now.flavour, now.clears, self._rest, self._damage)
            self.crew.start(orders)

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(20e-6)

    @staticmethod
    def _spin(seconds: float) -> None:
        """Shorter than any sleep."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
