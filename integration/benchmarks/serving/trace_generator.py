"""Makes traces with the structure of recorded ones: arrivals, lengths, and a tree of prefixes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .trace_file import BLOCK_TOKENS, TraceRequest, blocks_of

#: Above it, no sequence of new prompts reuses so much.
_MOST_REUSE = 0.95


@dataclass(frozen=True)
class TraceShape:
    """Lengths are in tokens, and lognormal.

    Attributes:
        seconds: from the first arrival to the last, about.
        burstiness: coefficient of variation of the times between arrivals; 1: a Poisson process.
        input_median, input_sigma: of prompts; sigma is that of the logarithm.
        reuse: part of all blocks that a cache of any size would hit.
        recency: how much likelier a late request is to be continued than an early one; 0: all
            alike, 1: as 1 / age.
    """

    requests: int = 1000
    seconds: float = 300.0
    burstiness: float = 1.0
    input_median: int = 7000
    input_sigma: float = 1.1
    output_median: int = 350
    output_sigma: float = 0.8
    longest: int = 131072
    longest_output: int = 2000
    reuse: float = 0.4
    recency: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.reuse <= _MOST_REUSE:
            raise ValueError(f"reuse {self.reuse:g}: from 0 to {_MOST_REUSE:g}")
        for name in ("requests", "input_median", "output_median", "longest", "longest_output"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: 1 at least")
        for name in ("seconds", "burstiness", "input_sigma", "output_sigma", "recency"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name):g}: 0 at least")


def generate(shape: TraceShape, seed: int) -> list[TraceRequest]:
    """A trace, the same for the same shape and seed.

    A request that reuses something begins as an earlier one does, up to any block: where several
    continue the same one, the tree branches. How deep it goes is chosen so that the trace as a
    whole comes as near as it can to :attr:`TraceShape.reuse`.
    """
    draw = np.random.default_rng(seed)
    arrivals = _arrivals(shape, draw)
    inputs = _lengths(draw, shape.requests, shape.input_median, shape.input_sigma, shape.longest)
    outputs = _lengths(
        draw, shape.requests, shape.output_median, shape.output_sigma, shape.longest_output
    )
    whole: list[tuple[int, ...]] = []
    found = []
    ids, hit, total = 0, 0, 0
    for arrival, tokens, output in zip(arrivals, inputs, outputs, strict=True):
        count = blocks_of(tokens)
        # A block that is not full is nobody else's: what follows it would change it.
        total += count
        wanted = min(round(shape.reuse * total - hit), tokens // BLOCK_TOKENS)
        prefix = _prefix(whole, wanted, shape.recency, draw)
        hit += len(prefix)
        new = count - len(prefix)
        path = (*prefix, *range(ids, ids + new))
        ids += new
        found.append(TraceRequest(arrival, tokens, output, path))
        whole.append(path[: tokens // BLOCK_TOKENS])
    return found


def reuse_of(trace: list[TraceRequest]) -> float:
    """Part of all blocks that an earlier request has at the same place, with all before."""
    seen: set[tuple[int, int]] = set()
    hit = total = 0
    for request in trace:
        path = list(enumerate(request.hash_ids))
        hit += next((depth for depth, block in enumerate(path) if block not in seen), len(path))
        total += len(path)
        seen.update(path)
    return hit / total if total else 0.0


def _prefix(
    whole: list[tuple[int, ...]], wanted: int, recency: float, draw: np.random.Generator
) -> tuple[int, ...]:
    """At most ``wanted`` blocks at the beginning of an earlier request."""
    if wanted < 1 or not whole:
        return ()
    ages = np.arange(len(whole), 0, -1, dtype=float)
    lengths = np.fromiter((len(path) for path in whole), dtype=np.int64, count=len(whole))
    # Those that are deep enough if there are any, else the deepest.
    deep = lengths >= min(wanted, int(lengths.max()))
    likely = np.where(deep, ages**-recency, 0.0)
    chosen = draw.choice(len(whole), p=likely / likely.sum())
    return whole[chosen][:wanted]


def _arrivals(shape: TraceShape, draw: np.random.Generator) -> list[int]:
    gaps: npt.NDArray[np.float64] = np.ones(shape.requests)
    if shape.burstiness > 0:
        among = shape.burstiness**-2
        gaps = draw.gamma(among, 1 / among, shape.requests)
    gaps[0] = 0.0
    mean = shape.seconds * 1e3 / max(shape.requests - 1, 1)
    times: list[int] = np.rint(np.cumsum(gaps) * mean).astype(np.int64).tolist()
    return times


def _lengths(
    draw: np.random.Generator, count: int, median: int, sigma: float, most: int
) -> list[int]:
    lengths = np.exp(draw.normal(np.log(median), sigma, count))
    drawn: list[int] = np.clip(np.rint(lengths), 1, most).astype(np.int64).tolist()
    return drawn
