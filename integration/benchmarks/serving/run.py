"""Runs workloads on one backend after the other, until the time is up."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcache_beluga.signals import held_back

from .backends import BACKENDS
from .child import ChildError
from .clock import Clock
from .deployment import FAILURES, Deployment, PhaseCutShort
from .measured import PhaseResult
from .request import Phase
from .result_file import ResultFile
from .settings import Settings
from .warm_up import warm_up

Say = Callable[[str], None]

#: Taken off the limit, to end processes and write the file.
MARGIN_S = 5.0
_DYING_S = 5.0
#: Characters of a failure that are shown; the file has more.
_TOLD = 1500


@dataclass(frozen=True)
class Planned:
    """A phase, and which repetition of its workload it belongs to."""

    repeat: int
    phase: Phase


@dataclass
class Run:
    """Everything that one command measures.

    A backend that fails does not end the run: the file tells.

    Attributes:
        plan: in this order on each backend.
        warm_up_tokens: the longest prompt of the warm-up.
        backend_limit_s: for one backend, start included.
    """

    settings: Settings
    plan: Sequence[Planned]
    file: ResultFile
    folder: Path
    ports: Iterator[int]
    clock: Clock
    say: Say
    vocabulary: int
    warm_up_tokens: int = 16384
    backend_limit_s: float | None = None
    _slowest_start_s: float = 0.0

    def one_after_the_other(self, names: Sequence[str]) -> None:
        """The file has every row of a backend as soon as that has ended."""
        for name in self._available(names):
            if self.clock.left_s < self._slowest_start_s + 2 * MARGIN_S:
                self.leave_out(name, self.plan)
                continue
            clock = self.clock.within(self.backend_limit_s)
            self.say(f"{name}: starts")
            with contextlib.ExitStack() as stack:
                if (deployment := self._started(name, stack)) and self._serves(deployment, clock):
                    seat = _Seat(self, deployment, clock)
                    while seat.goes_on():
                        seat.take_turn()
            self.say(f"{name}: ended, {clock.elapsed_s:.1f} s in all")
            self.file.write()

    def together(self, names: Sequence[str]) -> None:
        """All at once on the same machine, phase by phase in turns that begin with another each.

        What drifts on the machine then meets all of them, and they start in the time of one. Those
        that are not asked are idle.
        """
        with contextlib.ExitStack() as stack:
            self.say(f"{', '.join(names)}: start")
            started = [self._started(name, stack) for name in self._available(names)]
            seats = [
                _Seat(self, deployment, self.clock)
                for deployment in started
                if deployment and self._serves(deployment, self.clock)
            ]
            for number in range(len(self.plan)):
                first = number % max(len(seats), 1)
                for seat in [*seats[first:], *seats[:first]]:
                    if seat.goes_on():
                        seat.take_turn()
                self.file.write()
        self.say("all ended")

    def _available(self, names: Sequence[str]) -> Iterator[str]:
        """Those that this machine has the software for."""
        workloads = sorted({planned.phase.workload for planned in self.plan})
        for name in names:
            self.file.begins(name, workloads)
            if missing := BACKENDS[name].missing(self.settings):
                self.file.skipped[name] = missing
                self.say(f"{name}: skipped, {missing}")
                continue
            emulated = BACKENDS[name].emulated(self.settings)
            if emulated and emulated not in self.file.emulated:
                self.file.emulated.append(emulated)
            yield name

    def _started(self, name: str, stack: contextlib.ExitStack) -> Deployment | None:
        """Its processes, which end with ``stack``; None if one cannot even be started."""
        phases = [planned.phase for planned in self.plan]
        try:
            with held_back():
                return stack.enter_context(
                    Deployment(BACKENDS[name], self.settings, phases, self.folder, self.ports)
                )
        except FAILURES as error:
            self.fails(name, str(error))
            return None

    def _serves(self, deployment: Deployment, clock: Clock) -> bool:
        """Wait for it and warm it up; False if it fails."""
        name = deployment.backend.name
        try:
            deployment.wait(min(self.settings.start_s, clock.left_s - MARGIN_S))
            self.file.start_s[name] = clock.elapsed_s
            self._slowest_start_s = max(self._slowest_start_s, clock.elapsed_s)
            self.say(f"{name}: serves after {clock.elapsed_s:.1f} s")
            self._warm_up(deployment, clock)
        except FAILURES as error:
            self.fails(name, str(error))
            deployment.close()  # so that what it holds is there for others
            return False
        return True

    def _warm_up(self, deployment: Deployment, clock: Clock) -> None:
        longest = min(self.warm_up_tokens, self.settings.max_model_len - 16)
        phases = [planned.phase for planned in self.plan]
        for phase in warm_up(phases, deployment.backend.instances, self.vocabulary, longest):
            try:
                got = deployment.run(phase, 0, clock.left_s - MARGIN_S, exactly=True)
            except PhaseCutShort:
                return  # and so is what follows
            if failed := [answer.error for answer in got.answers if answer.error]:
                raise ChildError(f"the warm-up failed: {failed[0]}\n{deployment.dead()}")
        self.say(f"{deployment.backend.name}: warm")

    def fails(self, name: str, why: str) -> None:
        """Tell of a backend that does not go on."""
        self.file.failed[name] = why
        self.say(f"{name}: FAILED: {why[-_TOLD:]}")

    def leave_out(
        self, name: str, plan: Sequence[Planned], why: str = "the time limit has come"
    ) -> None:
        """Tell of phases that a backend has not been measured in."""
        for planned in plan:
            if planned.phase.measured:
                what = f"{planned.phase.workload}, {planned.phase.name}, repeat {planned.repeat}"
                self.file.left_out.append(f"{name}: {what}: {why}")
        self.say(f"{name}: {len(plan)} phases left out: {why}")


class _Seat:
    """A deployment, and how far it is in the plan."""

    def __init__(self, run: Run, deployment: Deployment, clock: Clock) -> None:
        self._run, self._deployment, self._clock = run, deployment, clock
        self._name = deployment.backend.name
        self._next = 0
        self._took: dict[tuple[str, str], float] = {}

    def goes_on(self) -> bool:
        """Whether there is a turn to take."""
        return self._next < len(self._run.plan)

    def take_turn(self) -> None:
        """Run the next phase; where that is not possible, leave all others out."""
        planned = self._run.plan[self._next]
        phase, left = planned.phase, self._clock.left_s - MARGIN_S
        if phase.recomputed == 0 and not self._deployment.backend.caches:
            self._next += 1
            return
        key = (phase.workload, phase.name)
        begin = self._clock.elapsed_s
        if left < self._took.get(key, 0.0):
            self._stop()
            return
        try:
            result = self._deployment.run(phase, planned.repeat, left)
        except PhaseCutShort:
            self._stop()
            return
        except FAILURES as error:  # its counters cannot be read before the phase
            self._stop(self._deployment.dead(_DYING_S) or str(error))
            return
        self._took[key] = self._clock.elapsed_s - begin
        self._next += 1
        if phase.measured:
            self._run.file.add(result)
        self._run.say(f"{self._name}: {_line(phase, planned.repeat, result)}")
        if dead := self._deployment.dead():
            self._stop(dead)

    def _stop(self, failure: str = "") -> None:
        rest, self._next = self._run.plan[self._next :], len(self._run.plan)
        if failure:
            self._run.leave_out(self._name, rest, "a process has ended")
            self._run.fails(self._name, failure)
        else:
            self._run.leave_out(self._name, rest)


def _line(phase: Phase, repeat: int, result: PhaseResult) -> str:
    """What progress says of a phase."""
    times = [answer.ttft_s for answer in result.answered]
    median = f"{statistics.median(times) * 1e3:.1f}" if times else "-"
    text = (
        f"{phase.workload}, {phase.name}, repeat {repeat}: median TTFT {median} ms of {len(times)}"
        f" in {result.wall_s:.2f} s, loaded {result.loaded_tokens} of {result.prompt_tokens} tokens"
    )
    return text + (f"; FLAG: {result.flag}" if result.flag else "")


def planned(makes: Mapping[str, Callable[[int], list[Phase]]], repeats: int) -> list[Planned]:
    """All repetitions of all workloads; a limit that comes leaves out whole repetitions first."""
    return [
        Planned(repeat, phase)
        for repeat in range(repeats)
        for make in makes.values()
        for phase in make(repeat)
    ]
