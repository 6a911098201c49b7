"""Requests before the first that is measured, so that kernels are compiled and memory is mapped."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .request import Phase, Request

_OUTPUT_TOKENS = 4


def warm_up(
    phases: Sequence[Phase], instances: Sequence[int], vocabulary: int, longest: int
) -> list[Phase]:
    """Prompts of their own, each on all instances, then again: computed, stored and loaded.

    Args:
        phases: what will be measured, of which the longest prompt counts.
        longest: tokens that a prompt may have at most, however long those of ``phases`` are.
    """
    most = max(len(request.prompt) for phase in phases for request in phase.requests)
    lengths = sorted({min(most, longest), min(most, longest) // 3, min(most, 600)})
    draw = random.Random("warm-up")
    prompts = [tuple(draw.randrange(10, vocabulary) for _ in range(n)) for n in lengths if n > 0]
    requests = tuple(Request(prompt, _OUTPUT_TOKENS) for prompt in prompts)
    return [
        Phase("warm-up", f"round {turn}", requests, instance=number, measured=False)
        for turn in range(2)
        for number in instances
    ]
