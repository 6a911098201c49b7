"""Which way of copying is the fastest: it depends on the size of the fragments."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Direction(enum.Enum):
    """Which way the bytes go."""

    TO_GPU = "H2D"
    TO_POOL = "D2H"


class Method(enum.Enum):
    """How fragments are copied."""

    #: One kernel for all of them.
    FUSED = "fused kernel"
    #: The copy engines, one call for all of them (CUDA 12.8).
    BATCH = "batched memcpy"
    #: The copy engines, one call each.
    EACH = "memcpy each"


@dataclass(frozen=True)
class Crossover:
    """From how many bytes per fragment on the copy engines are faster than the fused kernel."""

    batch_from: int
    """Bytes from which one call for all is the fastest."""
    each_from: int
    """Bytes from which one call each is the fastest, or as fast as any."""


#: On an H200 behind PCIe 5 x16; ``beluga bench gpu`` measures these on any machine.
MEASURED: Mapping[Direction, Crossover] = {
    Direction.TO_GPU: Crossover(batch_from=1 << 20, each_from=16 << 20),
    Direction.TO_POOL: Crossover(batch_from=1 << 20, each_from=16 << 20),
}
#: Of so few fragments a launch costs more than it saves.
_FEW = 2


def method_for(
    direction: Direction,
    nbytes: int,
    count: int,
    batches: bool = True,
    crossover: Mapping[Direction, Crossover] = MEASURED,
) -> Method:
    """The fastest way for ``count`` fragments of ``nbytes``.

    ``batches``: whether this CUDA has the batched copy.
    """
    limits = crossover[direction]
    if nbytes >= limits.each_from or count <= _FEW:
        return Method.EACH
    if nbytes >= limits.batch_from and batches:
        return Method.BATCH
    return Method.FUSED


#: The simpler way wins a draw: it needs no processors of the GPU, or no table of addresses.
_DRAW = 1.02
_SIMPLEST_FIRST = (Method.EACH, Method.BATCH, Method.FUSED)


def fastest(speeds: Mapping[Method, float]) -> Method:
    """The method with the most bytes per second; within 2 % the simplest of the fastest."""
    limit = max(speeds.values()) / _DRAW
    return next(one for one in _SIMPLEST_FIRST if one in speeds and speeds[one] >= limit)


def crossover_of(measured: Sequence[tuple[int, Mapping[Method, float]]]) -> Crossover:
    """The crossover of ``(bytes per fragment, bytes per second of each method)``, sizes ascending.

    A limit lies at the smallest size from which on no larger one is copied faster by a method that
    comes before; where none is, behind the largest size.
    """
    beyond = 2 * measured[-1][0]
    batch_from = each_from = beyond
    for nbytes, speeds in reversed(measured):
        if fastest(speeds) is Method.FUSED:
            break
        batch_from = nbytes
    for nbytes, speeds in reversed(measured):
        if fastest(speeds) is not Method.EACH:
            break
        each_from = nbytes
    return Crossover(batch_from, each_from)
