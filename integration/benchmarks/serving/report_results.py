"""Reads result files, and puts together those that can be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .measured import Answer, PhaseResult
from .result_file import PER_RUN

#: What may differ between files of the same measurement, besides PER_RUN.
_MACHINE_NOW = ("load_average",)


class ReportError(ValueError):
    """A file that is no result file; the text names it and says what is wrong."""


@dataclass
class Results:
    """Everything that was measured on one machine with one set of versions and settings.

    Attributes:
        skipped, failed: backends, and why there is nothing of them.
        left_out: phases that were not measured, and why.
    """

    files: list[str]
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    commands: list[str] = field(default_factory=list)
    emulated: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    phases: list[PhaseResult] = field(default_factory=list)

    def same_conditions(self, other: Results) -> bool:
        """Whether rows of both may stand in one table."""
        return (
            _without(self.machine, _MACHINE_NOW) == _without(other.machine, _MACHINE_NOW)
            and self.versions == other.versions
            and _without(self.settings, PER_RUN) == _without(other.settings, PER_RUN)
        )

    def add(self, other: Results) -> None:
        """Take in what was measured under the same conditions."""
        self.files += other.files
        for mine, others in (
            (self.commands, other.commands),
            (self.emulated, other.emulated),
            (self.left_out, other.left_out),
        ):
            mine += [one for one in others if one not in mine]
        self.skipped |= other.skipped
        self.failed |= other.failed
        self.phases += other.phases
        self._forget_what_was_measured_after_all()

    def _forget_what_was_measured_after_all(self) -> None:
        measured = {phase.backend for phase in self.phases}
        self.skipped = {name: why for name, why in self.skipped.items() if name not in measured}

    @property
    def bytes_per_token(self) -> int | None:
        """Of KV, in all layers; None if the file does not say."""
        value = self.settings.get("kv_bytes_per_token")
        return int(value) if value else None


def read_results(paths: Sequence[Path]) -> list[Results]:
    """One entry for all files that were measured under the same conditions.

    Raises:
        ReportError: a file is no result file.
        OSError: it cannot be read.
    """
    found: list[Results] = []
    for path in paths:
        new = _read(path)
        for one in found:
            if one.same_conditions(new):
                one.add(new)
                break
        else:
            found.append(new)
    return found


def _read(path: Path) -> Results:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is no JSON ({error}): give what --json has written") from None
    try:
        results = Results(
            files=[str(path)],
            machine=dict(document["machine"]),
            versions=dict(document["versions"]),
            settings=dict(document["settings"]),
            commands=str(document["command"]).splitlines(),
            emulated=list(document["emulated"]),
            skipped=dict(document["skipped"]),
            failed=dict(document.get("failed", {})),
            left_out=list(document.get("left_out", [])),
            phases=[_phase(phase) for phase in document["phases"]],
        )
    except KeyError as error:
        raise ReportError(f"{path} has no {error}: give what --json has written") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{path} is no result file: {error}") from None
    if not results.phases:
        raise ReportError(f"{path} has no phases: nothing was measured")
    return results


def _phase(document: dict[str, Any]) -> PhaseResult:
    answers = [Answer(**_known(Answer, one)) for one in document["answers"]]
    return PhaseResult(**_known(PhaseResult, document) | {"answers": answers})


def _known(kind: Any, document: dict[str, Any]) -> dict[str, Any]:
    """Fields that this version knows; later ones may have more."""
    names = [one.name for one in dataclasses.fields(kind)]
    return {name: document[name] for name in names if name in document}


def _without(document: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}
