"""Runs workloads on one backend after the other, until the time is up."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .backends import BACKENDS
from .child import ChildError
from .clock import Clock
from .deployment import Deployment, PhaseCutShort
from .measured import PhaseResult
from .request import Phase
from .result_file import ResultFile
from .settings import Settings
from .warm_up import warm_up

Say = Callable[[str], None]

#: Taken off the limit, to end processes and write the file.
_MARGIN_S = 5.0
_ENDED = "a process has ended"


@dataclass(frozen=True)
class Planned:
    """A phase, and which repetition of its workload it belongs to."""

    repeat: int
    phase: Phase


@dataclass
class Run:
    """Everything that one command measures.

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
    warm_up_tokens: int = 32768
    backend_limit_s: float | None = None
    _slowest_start_s: float = 0.0

    def backends(self, names: Sequence[str]) -> None:
        """Run them one after the other; the file has every row as soon as its backend has ended."""
        workloads = sorted({planned.phase.workload for planned in self.plan})
        for name in names:
            self.file.begins(name, workloads)
            if missing := BACKENDS[name].missing(self.settings):
                self.file.skipped[name] = missing
                self.say(f"{name}: skipped, {missing}")
            elif self.clock.left_s < self._slowest_start_s + 2 * _MARGIN_S:
                self._leave_out(name, self.plan)
            else:
                self._backend(name)
            self.file.write()

    def _backend(self, name: str) -> None:
        emulated = BACKENDS[name].emulated(self.settings)
        if emulated and emulated not in self.file.emulated:
            self.file.emulated.append(emulated)
        phases = [planned.phase for planned in self.plan]
        clock = self.clock.within(self.backend_limit_s)
        self.say(f"{name}: starts")
        try:
            deployment = Deployment(BACKENDS[name], self.settings, phases, self.folder, self.ports)
            with deployment:
                self.file.start_s[name] = clock.elapsed_s
                self._slowest_start_s = max(self._slowest_start_s, clock.elapsed_s)
                self.say(f"{name}: serves after {clock.elapsed_s:.1f} s")
                self._warm_up(deployment, phases, clock)
                self._phases(name, deployment, clock)
                if dead := deployment.dead():
                    raise ChildError(dead)
        except (ChildError, OSError, subprocess.SubprocessError, RuntimeError) as error:
            self.file.failed[name] = str(error)
            self.say(f"{name}: FAILED: {error}")
        self.say(f"{name}: ended, {clock.elapsed_s:.1f} s in all")

    def _warm_up(self, deployment: Deployment, phases: list[Phase], clock: Clock) -> None:
        longest = min(self.warm_up_tokens, self.settings.max_model_len - 16)
        used = deployment.backend.instances
        for phase in warm_up(phases, used, self.vocabulary, longest):
            try:
                got = deployment.run(phase, 0, clock.left_s - _MARGIN_S, exactly=True)
            except PhaseCutShort:
                return  # and so is what follows
            if failed := [answer.error for answer in got.answers if answer.error]:
                raise ChildError(f"the warm-up failed: {failed[0]}\n{deployment.dead()}")
        self.say(f"{deployment.backend.name}: warm")

    def _phases(self, name: str, deployment: Deployment, clock: Clock) -> None:
        took: dict[tuple[str, str], float] = {}
        for number, planned in enumerate(self.plan):
            phase, left = planned.phase, clock.left_s - _MARGIN_S
            key = (phase.workload, phase.name)
            if left < took.get(key, 0.0):
                self._leave_out(name, self.plan[number:])
                return
            before = clock.elapsed_s
            try:
                result = deployment.run(phase, planned.repeat, left)
            except PhaseCutShort:
                self._leave_out(name, self.plan[number:])
                return
            except OSError as error:  # counters cannot be read
                self._leave_out(name, self.plan[number:], _ENDED)
                raise ChildError(deployment.dead() or str(error)) from None
            took[key] = clock.elapsed_s - before
            if phase.measured:
                self.file.add(result)
            self.say(f"{name}: {_line(phase, planned.repeat, result)}")
            if deployment.dead():
                self._leave_out(name, self.plan[number + 1 :], _ENDED)
                return

    def _leave_out(
        self, name: str, plan: Sequence[Planned], why: str = "the time limit has come"
    ) -> None:
        for planned in plan:
            if planned.phase.measured:
                what = f"{planned.phase.workload}, {planned.phase.name}, repeat {planned.repeat}"
                self.file.left_out.append(f"{name}: {what}: {why}")
        self.say(f"{name}: {len(plan)} phases left out: {why}")


def _line(phase: Phase, repeat: int, result: PhaseResult) -> str:
    """What progress says of a phase."""
    times = [answer.ttft_s for answer in result.answers if not answer.error]
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
