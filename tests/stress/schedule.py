"""How much to do, from which seed, and telling how it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .board import Field
from .crew import Crew


@dataclass(frozen=True)
class Schedule:
    seed: int
    kills: int
    #: Trials of killing at a single instruction.
    steps: int
    #: Hosts to stop until the others take them for dead.
    pauses: int
    #: Shows a line although pytest captures output.
    say: Callable[[str], None]
    #: Where to write figures, as JSON.
    report_path: Path | None

    def report(self, crew: Crew, counters: dict[str, int], seconds: float) -> None:
        """What happened, and the longest operations; without a bar, the machine is shared."""
        worst = sorted(crew.worst_ms().items(), key=lambda item: -item[1])
        self.say("longest operations, ms: " + ", ".join(f"{n} {ms:.1f}" for n, ms in worst[:8]))
        told = ("puts", "evictions", "lost_leases", "repaired", "refused_leased", "refused_busy")
        self.say(
            f"{seconds:.0f} s; refused puts {crew.total(Field.REFUSED)}, void reads "
            f"{crew.total(Field.LOST)}; since the last recovery: "
            + ", ".join(f"{name} {counters[name]}" for name in told)
        )
