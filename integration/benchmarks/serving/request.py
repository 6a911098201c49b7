"""What a workload asks of a deployment: requests, in phases."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """One prompt. Token ids, because what is cached depends on tokens and on nothing else."""

    prompt: tuple[int, ...]
    #: Exactly so many are generated.
    output_tokens: int
    #: Seconds from the beginning of the phase. None: as soon as the phase's concurrency allows.
    arrival_s: float | None = None
    #: Index in the phase of the request that must have ended before: a conversation's last turn.
    after: int | None = None
    #: Tokens at the beginning of the prompt that an earlier request has asked for: what a cache
    #: of any size, and of single tokens, would hit.
    reused_tokens: int = 0


@dataclass(frozen=True)
class Phase:
    """Requests that are measured together, and reported in one row."""

    #: ``documents``, ``reuse``, ``chat`` or ``trace``.
    workload: str
    #: What the row says, ``populate`` or ``reuse 50 %``, for instance.
    name: str
    requests: tuple[Request, ...]
    #: At most so many at a time.
    concurrency: int = 1
    #: Which instance of vLLM is asked: 0 or 1, or None for both in turn.
    instance: int | None = None
    #: False: it warms something up, or fills a cache, and has no row.
    measured: bool = True
    #: The first so many are enough where nothing is cached: the others are the same prompts again.
    #: None: all. 0: the phase is passed over there.
    recomputed: int | None = None
    #: What plots draw it over: ``{"tokens": 32768}`` or ``{"reuse": 0.5}``, for instance.
    axes: dict[str, float] = field(default_factory=dict)
