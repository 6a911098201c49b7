"""What a run measured: the result file's schema."""

from __future__ import annotations

from dataclasses import dataclass, field

#: A row whose hits are fewer than this part of what a cache could hit is flagged.
HIT = 0.9


@dataclass(frozen=True)
class Answer:
    """One request's. Times are seconds on the client's monotonic clock."""

    #: From the beginning of the phase.
    sent_s: float
    #: To the first token, and to the last.
    ttft_s: float
    end_s: float
    prompt_tokens: int
    output_tokens: int
    #: Which vLLM served it.
    instance: int
    #: Empty, or why there is no answer; the times mean nothing then.
    error: str = ""
    #: Of the prompt, taken from any cache, as vLLM says with the answer. None: it does not.
    cached_tokens: int | None = None
    #: Between two tokens of the answer: how long a running decode stood still.
    longest_gap_s: float = 0.0

    @property
    def tpot_s(self) -> float:
        """Per output token after the first; 0 where there is only one."""
        return (
            (self.end_s - self.ttft_s) / max(self.output_tokens - 1, 1)
            if self.output_tokens > 1
            else 0.0
        )


@dataclass(frozen=True)
class PhaseResult:
    """One phase on one backend, once."""

    backend: str
    workload: str
    name: str
    #: Which repetition, from 0; all have different tokens.
    repeat: int
    concurrency: int
    axes: dict[str, float]
    answers: list[Answer]
    #: From the first request sent to the last answer's end.
    wall_s: float
    #: Of vLLM, of LMCache's servers and of the tier's own processes (Redis, for instance).
    cpu_s: dict[str, float] = field(default_factory=dict)
    #: Of all prompts, and how many of them LMCache loaded instead of vLLM computing them.
    #: None: cannot be told.
    prompt_tokens: int = 0
    loaded_tokens: int | None = None
    #: What the tier got and gave. None: cannot be told.
    stored_bytes: int | None = None
    loaded_bytes: int | None = None
    #: Who says so.
    bytes_counted_by: str = ""
    #: Of all prompts, the tokens that an earlier request has asked for.
    reused_tokens: int = 0
    #: Found in the GPU's memory, where vLLM's own prefix caching is on.
    local_tokens: int = 0
    #: Which instances were asked.
    instances: list[int] = field(default_factory=list)
    #: The phase wanted another instance than the one that stored, but they share nothing there.
    asked_who_stored: bool = False
    #: For how long the tier went on storing after the last answer.
    settled_s: float = 0.0
    #: Why the row is not what its name says, a hit that did not hit for instance; empty: it is.
    flag: str = ""

    @property
    def answered(self) -> list[Answer]:
        """Without the requests that failed."""
        return [answer for answer in self.answers if not answer.error]
