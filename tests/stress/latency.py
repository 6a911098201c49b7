"""How long operations take, told apart by whether a host is away meanwhile.

Each worker adds its operations to histograms that the conductor can read at any time. Every one is
counted twice: by the clock, and without the time for which the worker could have run and the
machine gave the CPU to somebody else. More processes than CPUs say a lot about the first number,
and nothing about who waits for whom.
"""

from __future__ import annotations

import enum
import math

import numpy as np
import numpy.typing as npt

#: Buckets are an eighth of an octave wide: a bound is at most 9 % above what it stands for.
_PER_OCTAVE = 8
_FIRST_OCTAVE = 9  # 512 ns
BUCKETS = 25 * _PER_OCTAVE


class Window(enum.IntEnum):
    """What the conductor lets happen for a while."""

    #: Anything: nothing is recorded.
    UNMEASURED = 0
    #: Everybody is well.
    USUAL = 1
    #: All processes of a host are dead, or stopped.
    OUTAGE = 2


class Measure(enum.IntEnum):
    ELAPSED = 0
    #: Without the time that a worker waited for a CPU.
    UNQUEUED = 1


#: A window by number and kind, in one word.
_KINDS = 4


def window_word(serial: int, kind: Window) -> int:
    return serial * _KINDS + kind


def window_of(begun: int, ended: int) -> Window:
    """Where an operation belongs that began in one window and ended in another.

    One that only touches an outage belongs to it, so that whoever waits for its end is seen.
    """
    for word in (begun, ended):
        if word % _KINDS == Window.OUTAGE:
            return Window.OUTAGE
    return Window.USUAL if begun == ended and begun % _KINDS else Window.UNMEASURED


def bucket_of(nanoseconds: int) -> int:
    at = int(_PER_OCTAVE * (math.log2(max(nanoseconds, 1)) - _FIRST_OCTAVE))
    return min(max(at, 0), BUCKETS - 1)


def bound_ms(bucket: int) -> float:
    """The longest time that falls into a bucket."""
    return float(2 ** (_FIRST_OCTAVE + (bucket + 1) / _PER_OCTAVE)) / 1e6


Histogram = npt.NDArray[np.uint64]


def quantile_ms(histogram: Histogram, share: float) -> float:
    """The time below which a share of the operations stays. 0 if there was none."""
    total = int(histogram.sum())
    if total == 0:
        return 0.0
    below = np.cumsum(histogram)
    return bound_ms(int(np.searchsorted(below, math.ceil(total * share))))


def worst_ms(histogram: Histogram) -> float:
    filled = np.flatnonzero(histogram)
    return bound_ms(int(filled[-1])) if filled.size else 0.0


def above(histogram: Histogram, milliseconds: float) -> float:
    """Which share of the operations took longer, to within a bucket."""
    total = int(histogram.sum())
    longer = histogram[bucket_of(int(milliseconds * 1e6)) + 1 :]
    return int(longer.sum()) / total if total else 0.0
