"""The workloads by name, each imported when it is asked for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from .request import Phase, Request

NAMES = ("documents", "reuse", "chat", "trace", "burst", "probe")


@dataclass(frozen=True)
class Scale:
    """How large, and drawn from what. All lengths in tokens."""

    seed: int
    vocabulary: int
    lengths: tuple[int, ...]
    output_tokens: int
    quick: bool = False
    #: Prompts of each length, and requests at once in bursts.
    count: int = 1
    #: How often each document is asked for again where that is one at a time.
    hits: int = 1
    bursts: tuple[int, ...] = (8, 32)
    trace: Path | None = None
    #: Fields of the trace's ``Replay`` that were given.
    replay: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[Scale, int], list[Phase]]


def phases_of(name: str, scale: Scale, repeat: int) -> list[Phase]:
    """The phases of a workload; each ``repeat`` has other tokens."""
    if name == "probe":
        return probe(scale, repeat)
    module = import_module(f".workload_{name}", __package__)
    if name == "trace":
        replay = dataclasses.replace(module.Replay.of(scale), **scale.replay)
        make: Make = partial(module.phases, replay=replay)
    else:
        make = module.phases
    return make(scale, repeat)


def probe(scale: Scale, repeat: int) -> list[Phase]:
    """Each length stored by one instance, asked of the other, then several at once: a look."""
    draw = random.Random(f"{scale.seed} {repeat}")
    found = []
    for length in scale.lengths:
        prompts = [
            tuple(draw.randrange(10, scale.vocabulary) for _ in range(length))
            for _ in range(scale.count)
        ]
        new = tuple(Request(prompt, scale.output_tokens) for prompt in prompts)
        again = tuple(
            Request(prompt, scale.output_tokens, reused_tokens=length) for prompt in prompts
        )
        axes = {"tokens": float(length)}
        found += [
            Phase("probe", f"populate {length}", new, instance=0, axes=axes),
            Phase("probe", f"hit {length}", again, instance=1, axes=axes),
            Phase("probe", f"at once {length}", again, len(again), instance=1, axes=axes),
        ]
    return found
