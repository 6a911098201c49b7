"""Documents of one length: what is asked for them first, and what is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .request import Phase, Request
from .workload_tokens import Asked, TokenSource

_REFERENCE = 32768


@dataclass(frozen=True)
class Documents:
    """Some of ``length`` tokens.

    Attributes:
        first: a request for each, before anybody has asked for it.
        again: the same prompts, all of which a cache may have.
    """

    length: int
    first: tuple[Request, ...]
    again: tuple[Request, ...]

    @staticmethod
    def drawn(
        source: TokenSource, asked: Asked, length: int, count: int, output_tokens: int
    ) -> Documents:
        """``count`` new ones; ``asked`` knows all prompts of the repetition."""
        prompts = [source.prompt(source.draw(length)) for _ in range(count)]
        return Documents(
            length,
            tuple(Request(p, output_tokens, reused_tokens=asked.reused(p)) for p in prompts),
            tuple(Request(p, output_tokens, reused_tokens=asked.reused(p)) for p in prompts),
        )

    def cycled(self, count: int) -> tuple[Request, ...]:
        """``count`` requests of :attr:`again`, in turn."""
        return tuple(self.again[i % len(self.again)] for i in range(count))


def populate(workload: str, documents: Documents) -> Phase:
    """Each for the first time, one at a time, on instance 0."""
    return Phase(
        workload,
        f"populate {length_name(documents.length)}",
        documents.first,
        instance=0,
        axes={"tokens": float(documents.length), "concurrency": 1.0, "reuse": 0.0},
    )


def all_hit(workload: str, documents: Documents, times: int) -> list[Phase]:
    """Each again, so many times, one at a time, on instance 1: a phase for each time, so that
    backends that run together take turns often. A row has all of them."""
    return [
        Phase(
            workload,
            f"all-hit {length_name(documents.length)}",
            documents.again,
            instance=1,
            recomputed=len(documents.again) if time == 0 else 0,
            axes={"tokens": float(documents.length), "concurrency": 1.0, "reuse": 1.0},
        )
        for time in range(times)
    ]


def reference_length(lengths: Sequence[int]) -> int:
    """The one at which all else is compared than lengths: the nearest to 32 K."""
    return min(lengths, key=lambda length: abs(length - _REFERENCE))


def length_name(tokens: float) -> str:
    """``32K`` for 32768, ``1000`` for 1000."""
    return f"{tokens / 1024:g}K" if tokens >= 1024 and tokens % 256 == 0 else f"{tokens:g}"
