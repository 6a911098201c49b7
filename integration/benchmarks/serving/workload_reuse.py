"""A system prompt that all requests begin with, and a rest that no two have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .request import Phase, Request
from .workload_document_set import length_name, reference_length
from .workload_tokens import Asked, TokenSource

if TYPE_CHECKING:
    from .workloads import Scale

NAME = "reuse"

#: Parts of a prompt that others share.
RATIOS = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)


def phases(scale: Scale, repeat: int, ratios: tuple[float, ...] = RATIOS) -> list[Phase]:
    """Store one prompt with each system prompt, then ask for others with the same.

    All prompts have the same length, the nearest to 32 K tokens; each ratio has a system prompt of
    its own. It ends where it ends, which is seldom where a cache's chunk does.

    Raises:
        ValueError: a ratio is not between 0 and 1.
    """
    if any(not 0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios {ratios}: each from 0 to 1")
    source, asked = TokenSource(scale.vocabulary, scale.seed, NAME, repeat), Asked()
    length = reference_length(scale.lengths)
    systems = {ratio: source.draw(round(ratio * length)) for ratio in ratios}

    def request(ratio: float) -> Request:
        system = systems[ratio]
        prompt = source.prompt(system, source.draw(length - len(system)))
        return Request(prompt, scale.output_tokens, reused_tokens=asked.reused(prompt))

    def requests(ratio: float) -> tuple[Request, ...]:
        return tuple(request(ratio) for _ in range(scale.count))

    name = length_name(length)
    stored = tuple(request(ratio) for ratio in ratios)
    tokens = {"tokens": float(length), "concurrency": 1.0}
    return [
        Phase(NAME, f"populate {name}", stored, instance=0, axes=tokens),
        *(
            Phase(
                NAME,
                f"reuse {ratio * 100:g} % of {name}",
                requests(ratio),
                instance=1,
                axes=tokens | {"reuse": ratio},
            )
            for ratio in ratios
        ),
    ]
