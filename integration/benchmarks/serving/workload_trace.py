"""Replays a trace: its arrivals, lengths and common prefixes, with tokens made up for its ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .request import Phase, Request
from .trace_file import BLOCK_TOKENS, TraceError, TraceRequest, read_trace
from .workload_tokens import Asked, Tokens, TokenSource

if TYPE_CHECKING:
    from .workloads import Scale

NAME = "trace"

#: Requests at a time that store what was asked before.
_AT_ONCE = 4


@dataclass(frozen=True)
class Replay:
    """How much of a trace, and on which scale.

    Attributes:
        count: requests; None: all.
        skip: requests at the beginning of the file that are left out.
        warm: what replayed prompts have in common with those that ``skip`` leaves out is stored
            before, in a phase without a row: a cache that has been in use, instead of an empty one.
        time_scale: what arrival times are multiplied with: 0.5 is twice as fast.
        length_scale: what lengths of prompts and answers are multiplied with. Blocks are scaled,
            so that common prefixes remain.
        longest: tokens of a prompt and its answer together, at most; prompts are cut at the end.
            None: no limit.
        longest_output: tokens of an answer, at most.
    """

    count: int | None = None
    skip: int = 0
    warm: bool = False
    time_scale: float = 1.0
    length_scale: float = 1.0
    longest: int | None = None
    longest_output: int | None = None

    def __post_init__(self) -> None:
        if self.time_scale < 0 or self.length_scale <= 0:
            raise ValueError("time_scale is at least 0, and length_scale more")
        if self.longest is not None and self.longest < 2:
            raise ValueError(f"longest {self.longest}: room for a prompt and an answer, 2 at least")

    @staticmethod
    def of(scale: Scale) -> Replay:
        """As many requests as fit a run, none longer than the longest prompt of the run."""
        return Replay(count=16 if scale.quick else 200, longest=max(scale.lengths))


def phases(scale: Scale, repeat: int, replay: Replay | None = None) -> list[Phase]:
    """One phase, on both instances in turn. Begins with the first request, with an empty cache.

    Raises:
        TraceError: see :func:`read_trace`; or no file was given.
    """
    replay = replay or Replay.of(scale)
    if scale.trace is None:
        raise TraceError("the workload trace replays a file: name one, or generate one")
    source = TokenSource(scale.vocabulary, scale.seed, NAME, repeat)
    trace = read_trace(scale.trace, replay.count, replay.skip)
    blocks, asked = _Blocks(replay, source), Asked()
    found = []
    name = f"{scale.trace.stem}, {len(trace)} requests"
    if replay.skip:
        name += f" after {replay.skip}"
    if replay.skip and replay.warm:
        name += ", warm"
        before = read_trace(scale.trace, replay.skip)
        stored = _stored(before, trace, replay, blocks, asked)
        if stored:
            found.append(Phase(NAME, f"{name}: before", stored, _AT_ONCE, measured=False))
    requests = _replayed(trace, replay, blocks, asked)
    axes = {"requests": float(len(requests))}
    return [*found, Phase(NAME, name, requests, concurrency=len(requests), axes=axes)]


class _Blocks:
    """The tokens of a trace's ids, cut and scaled as the replay says."""

    def __init__(self, replay: Replay, source: TokenSource) -> None:
        self.size = max(round(BLOCK_TOKENS * replay.length_scale), 1)
        self._source = source
        self._known: dict[int, Tokens] = {}

    def scaled(self, tokens: int) -> int:
        """Of a prompt or an answer."""
        blocks, rest = divmod(tokens, BLOCK_TOKENS)
        return max(blocks * self.size + round(rest * self.size / BLOCK_TOKENS), 1)

    def prompt(self, ids: Sequence[int], tokens: int) -> tuple[int, ...]:
        """The first so many tokens of these blocks."""
        used = ids[: -(-tokens // self.size)]
        parts = [self._block(number) for number in used]
        parts[-1] = parts[-1][: tokens - (len(parts) - 1) * self.size]
        return self._source.prompt(*parts)

    def _block(self, number: int) -> Tokens:
        if number not in self._known:
            self._known[number] = self._source.block(number, self.size)
        return self._known[number]


def _replayed(
    trace: Sequence[TraceRequest], replay: Replay, blocks: _Blocks, asked: Asked
) -> tuple[Request, ...]:
    """The requests of a trace; the first arrives at 0."""
    found = []
    for one in trace:
        tokens, output = blocks.scaled(one.input_length), blocks.scaled(one.output_length)
        output = min(output, replay.longest_output or output)
        if replay.longest is not None:
            output = min(output, replay.longest - 1)
            tokens = min(tokens, replay.longest - output)
        prompt = blocks.prompt(one.hash_ids, tokens)
        found.append(
            Request(
                prompt,
                output,
                arrival_s=(one.timestamp - trace[0].timestamp) / 1e3 * replay.time_scale,
                reused_tokens=asked.reused(prompt),
            )
        )
    return tuple(found)


def _stored(
    before: Sequence[TraceRequest],
    trace: Sequence[TraceRequest],
    replay: Replay,
    blocks: _Blocks,
    asked: Asked,
) -> tuple[Request, ...]:
    """What ``trace`` has in common with the requests ``before`` it, each beginning once."""
    known = {block for one in before for block in enumerate(one.hash_ids)}
    beginnings: set[tuple[int, ...]] = set()
    for one in trace:
        places = enumerate(one.hash_ids)
        depth = next((n for n, block in enumerate(places) if block not in known), None)
        beginnings.add(one.hash_ids[:depth])
    longest = sorted(beginnings, key=len, reverse=True)
    whole: set[tuple[int, ...]] = set()
    found = []
    for ids in longest:
        if ids and ids not in whole:
            whole |= {ids[:depth] for depth in range(1, len(ids) + 1)}
            tokens = len(ids) * blocks.size
            if replay.longest is not None:
                tokens = min(tokens, replay.longest - 1)
            prompt = blocks.prompt(ids, tokens)
            found.append(Request(prompt, 1, reused_tokens=asked.reused(prompt)))
    return tuple(found)
