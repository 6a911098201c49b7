"""From which reuse ratio on a backend beats recomputing, as far as measurements can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from .report_rows import Spread

#: So many samples have a spread.
_FEW = 3


class Kind(Enum):
    """What can be said."""

    ALWAYS = "always"
    NEVER = "never"
    FROM = "from"
    #: Differences are not larger than the spread of the measurements, or have no order.
    UNCLEAR = "unclear"


class Faster(Enum):
    """One ratio: the backend against recomputing."""

    YES = "faster"
    NO = "slower"
    #: The middle eight tenths of both overlap.
    UNCLEAR = "within the spread"


@dataclass(frozen=True)
class Verdict:
    """About one backend, for prompts of one length.

    Attributes:
        ratio: where the medians cross, between measured ratios by a straight line; for FROM alone.
        low: the highest measured ratio below at which it is clearly slower; None: there is none.
        high: the ratio from which on it is clearly faster at all that were measured.
        points: what was found at each ratio.
        samples: at the ratio and on the side that has the fewest.
    """

    kind: Kind
    points: Mapping[float, Faster]
    samples: int = 0
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if not self.points:
            return "cannot be told: there is no ratio at which both were measured"
        few = f"; no spread is known of {self.samples} samples each" if self.samples < _FEW else ""
        return self._text() + few

    def _text(self) -> str:
        measured = f"measured: {', '.join(map(_percent, self.points))}"
        if self.kind is Kind.ALWAYS:
            return f"at every ratio that was measured ({measured})"
        if self.kind is Kind.NEVER:
            return f"at no ratio that was measured ({_each(self.points)})"
        if self.kind is Kind.UNCLEAR:
            return f"cannot be told ({_each(self.points)})"
        assert self.high is not None
        if self.ratio is None:
            return (
                f"from {_percent(self.high)} on for certain; below it is not slower beyond "
                f"the spread ({_each(self.points)})"
            )
        return f"from about {self.ratio * 100:.0f} % on ({_each(self.points)})"


def verdict(
    backend: Mapping[float, Sequence[float]], recompute: Mapping[float, Sequence[float]]
) -> Verdict:
    """Compare times to the first token, by reuse ratio; the smaller the better.

    A point counts as faster or slower if the middle eight tenths of the samples of one side lie
    below those of the other. The ratio that is returned is where the medians cross.
    """
    both = sorted(r for r in backend if backend[r] and recompute.get(r))
    mine = [Spread.of(backend[ratio]) for ratio in both]
    others = [Spread.of(recompute[ratio]) for ratio in both]
    points = {
        ratio: _faster(one, other) for ratio, one, other in zip(both, mine, others, strict=True)
    }
    found = list(points.values())
    samples = min((min(len(backend[r]), len(recompute[r])) for r in both), default=0)
    if not found or all(one is Faster.UNCLEAR for one in found):
        return Verdict(Kind.UNCLEAR, points, samples)
    if all(one is Faster.YES for one in found):
        return Verdict(Kind.ALWAYS, points, samples, high=both[0])
    if Faster.YES not in found:
        return Verdict(Kind.NEVER, points, samples)
    if found[-1] is not Faster.YES:  # and yet somewhere below
        return Verdict(Kind.UNCLEAR, points, samples)
    # The last run of clearly faster ones, and the last that is clearly slower before it.
    start = max(i for i, one in enumerate(found) if one is not Faster.YES) + 1
    slower = [i for i, one in enumerate(found[:start]) if one is Faster.NO]
    if slower and Faster.YES in found[: slower[-1]]:
        return Verdict(Kind.UNCLEAR, points, samples)  # faster, slower, faster
    differences = [a.median - b.median for a, b in zip(mine, others, strict=True)]
    return Verdict(
        Kind.FROM,
        points,
        samples,
        ratio=_crossing(both, differences, start) if slower else None,
        low=both[slower[-1]] if slower else None,
        high=both[start],
    )


def _faster(one: Spread, other: Spread) -> Faster:
    if one.overlaps(other):
        return Faster.UNCLEAR
    return Faster.YES if one.median < other.median else Faster.NO


def _crossing(ratios: Sequence[float], differences: Sequence[float], end: int) -> float:
    """Where differences become negative for good, at ``end`` at the latest."""
    before = max(i for i in range(end) if differences[i] >= 0)
    low, high = differences[before], differences[before + 1]
    part = low / (low - high)
    return ratios[before] + part * (ratios[before + 1] - ratios[before])


def _each(points: Mapping[float, Faster]) -> str:
    """``slower at 0 %, 10 %; faster at 30 %``."""
    runs: list[tuple[Faster, list[str]]] = []
    for ratio, found in points.items():
        if not runs or runs[-1][0] is not found:
            runs.append((found, []))
        runs[-1][1].append(_percent(ratio))
    return "; ".join(f"{found.value} at {', '.join(names)}" for found, names in runs)


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.3g} %"
