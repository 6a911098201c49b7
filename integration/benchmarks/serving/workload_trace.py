"""Replays a trace: its arrivals, lengths and common prefixes, with tokens made up for its ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .request import Phase, Request
from .trace_file import BLOCK_TOKENS, TraceError, TraceRequest, read_trace
from .workload_tokens import Asked, Tokens, TokenSource

if TYPE_CHECKING:
    from .workloads import Scale

NAME = "trace"


@dataclass(frozen=True)
class Replay:
    """How much of a trace, and on which scale.

    Attributes:
        count: requests; None: all.
        skip: requests at the beginning of the file that are left out.
        time_scale: what arrival times are multiplied with: 0.5 is twice as fast.
        length_scale: what lengths of prompts and answers are multiplied with. Blocks are scaled,
            so that common prefixes remain.
        longest: tokens of a prompt and its answer together, at most; prompts are cut at the end.
            None: no limit.
        longest_output: tokens of an answer, at most.
    """

    count: int | None = None
    skip: int = 0
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
    trace = read_trace(scale.trace, replay.count, replay.skip)
    requests = replayed(trace, replay, TokenSource(scale.vocabulary, scale.seed, NAME, repeat))
    return [
        Phase(
            NAME,
            f"{scale.trace.stem}, {len(requests)} requests",
            requests,
            concurrency=len(requests),
            axes={"requests": float(len(requests))},
        )
    ]


def replayed(trace: list[TraceRequest], replay: Replay, source: TokenSource) -> tuple[Request, ...]:
    """The requests of a trace; the first arrives at 0."""
    size = max(round(BLOCK_TOKENS * replay.length_scale), 1)
    blocks: dict[int, Tokens] = {}
    asked = Asked()
    found = []
    for one in trace:
        output = max(round(one.output_length * size / BLOCK_TOKENS), 1)
        output = min(output, replay.longest_output or output)
        if replay.longest is not None:
            output = min(output, replay.longest - 1)
        last = one.input_length - (len(one.hash_ids) - 1) * BLOCK_TOKENS
        tokens = (len(one.hash_ids) - 1) * size + max(round(last * size / BLOCK_TOKENS), 1)
        if replay.longest is not None:
            tokens = min(tokens, replay.longest - output)
        parts = []
        for number in one.hash_ids[: -(-tokens // size)]:
            if number not in blocks:
                blocks[number] = source.block(number, size)
            parts.append(blocks[number])
        parts[-1] = parts[-1][: tokens - (len(parts) - 1) * size]
        prompt = source.prompt(*parts)
        found.append(
            Request(
                prompt,
                output,
                arrival_s=(one.timestamp - trace[0].timestamp) / 1e3 * replay.time_scale,
                reused_tokens=asked.reused(prompt),
            )
        )
    return tuple(found)
