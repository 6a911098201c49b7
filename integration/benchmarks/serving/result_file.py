"""The file with everything that was measured, of one run or of several."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmcache_beluga.cli.bench_report import rounded

from .measured import PhaseResult

#: Settings that may differ between runs whose rows stand in one table: phases say themselves what
#: was asked.
PER_RUN = (
    *("first_port", "start_s", "settle_s", "python", "together"),
    *("lengths", "count", "hits", "bursts", "repeats", "seed", "max_model_len"),
)
#: Those of one backend, whose rows a run replaces.
_PER_BACKEND = ("mooncake_protocol", "mooncake_device")


class ResultFileError(ValueError):
    """A file that cannot be added to; the text says why."""


@dataclass
class ResultFile:
    """Grows while a run goes on, and is written whole each time.

    Attributes:
        skipped: backends that cannot run here, and why.
        failed: backends that did not come up, and why.
        left_out: what the time limit left no time for.
    """

    path: Path
    command: list[str]
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    emulated: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    start_s: dict[str, float] = field(default_factory=dict)
    phases: list[dict[str, Any]] = field(default_factory=list)

    def add_to_existing(self) -> None:
        """Begin with what the file at ``path`` has, if there is one.

        Raises:
            ResultFileError: it was measured with other settings.
        """
        if not self.path.exists():
            return
        old = json.loads(self.path.read_text())
        differ = [
            f"{name}: {old['settings'].get(name)} there, {value} here"
            for name, value in json.loads(json.dumps(self.settings)).items()
            if name not in (*PER_RUN, *_PER_BACKEND) and old["settings"].get(name) != value
        ]
        if differ:
            raise ResultFileError(f"{self.path} was measured with other settings: {differ}")
        self.command = [*old["command"].splitlines(), *self.command]
        self.emulated = old["emulated"]
        self.skipped, self.failed = old["skipped"], old["failed"]
        self.left_out, self.start_s = old["left_out"], old["start_s"]
        self.phases = old["phases"]

    def begins(self, backend: str, workloads: list[str]) -> None:
        """What an earlier run had of it goes."""
        self.skipped.pop(backend, None)
        self.failed.pop(backend, None)
        self.left_out = [what for what in self.left_out if not what.startswith(f"{backend}:")]
        self.phases = [
            phase
            for phase in self.phases
            if phase["backend"] != backend or phase["workload"] not in workloads
        ]

    def add(self, phase: PhaseResult) -> None:
        """One row."""
        self.phases.append(asdict(phase))

    def write(self) -> None:
        """Replace the file; nobody finds half of it."""
        document = {
            "command": "\n".join(self.command),
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "emulated": self.emulated,
            "skipped": self.skipped,
            "failed": self.failed,
            "left_out": self.left_out,
            "start_s": self.start_s,
            "phases": self.phases,
        }
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps(rounded(document), indent=1) + "\n")
        os.replace(new, self.path)
