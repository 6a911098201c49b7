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

    At last all at once, on the last instance, which is the one that is asked for hits.

    Args:
        phases: what will be measured, of which the longest prompt counts.
        longest: tokens that a prompt may have at most, however long those of ``phases`` are.
    """
    most = max(len(request.prompt) for phase in phases for request in phase.requests)
    lengths = sorted({min(most, longest), min(most, longest) // 3, min(most, 600)})
    draw = random.Random("warm-up")
    prompts = [tuple(draw.randrange(10, vocabulary) for _ in range(n)) for n in lengths if n > 0]
    requests = tuple(Request(prompt, _OUTPUT_TOKENS) for prompt in prompts)
    rounds = [
        Phase("warm-up", f"round {turn}", requests, instance=number, measured=False)
        for turn in range(2)
        for number in instances
    ]
    together = requests * 2
    last = instances[-1]
    return [
        *rounds,
        Phase("warm-up", "at once", together, len(together), instance=last, measured=False),
    ]
