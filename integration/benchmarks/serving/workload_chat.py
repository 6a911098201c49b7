"""Conversations whose prompts grow turn by turn, each turn on another instance than the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .request import Phase, Request
from .workload_tokens import Asked, Tokens, TokenSource

if TYPE_CHECKING:
    from .workloads import Scale

NAME = "chat"

#: Tokens of an answer, at least, where there is time for them.
_ANSWER = 64


@dataclass(frozen=True)
class ChatShape:
    """Lengths in tokens.

    Attributes:
        conversations: at the same time; an even number, so that turns can alternate.
        system: at the beginning of all conversations.
        first: of a user in the first turn: a document, say.
        turn: of a user in each later turn.
        answer: what the next turn's prompt has as the answer to this one.
        think_s: mean time between two turns of a user, exponentially distributed. A turn whose
            last answer is late follows at once. 0: all follow at once.
    """

    conversations: int = 8
    turns: int = 5
    system: int = 1024
    first: int = 3072
    turn: int = 256
    answer: int = 128
    think_s: float = 0.0

    def __post_init__(self) -> None:
        if self.conversations < 2 or self.conversations % 2:
            raise ValueError(f"{self.conversations} conversations: give an even number")
        if self.turns < 2:
            raise ValueError(f"{self.turns} turns: a conversation has 2 at least")

    @staticmethod
    def of(scale: Scale) -> ChatShape:
        """With the shortest length as the first prompt."""
        length = min(scale.lengths)
        return ChatShape(
            conversations=2 if scale.quick else 8,
            turns=3 if scale.quick else 5,
            system=length // 4,
            first=length - length // 4,
            turn=max(length // 16, 1),
            answer=scale.output_tokens if scale.quick else max(scale.output_tokens, _ANSWER),
        )


def phases(scale: Scale, repeat: int, shape: ChatShape | None = None) -> list[Phase]:
    """First turns, then all later ones; the system prompt is stored before.

    What a model answers is not known before, and differs where arithmetic does. So the answer in a
    next turn's prompt is random tokens, the same for all backends; as many tokens are generated.
    """
    shape = shape or ChatShape.of(scale)
    source, asked = TokenSource(scale.vocabulary, scale.seed, NAME, repeat), Asked()
    thinking = np.random.default_rng([scale.seed, repeat])
    system = source.draw(shape.system)
    known = source.prompt(system)
    before = Request(known, 1, reused_tokens=asked.reused(known))
    said: list[list[Tokens]] = [[system, source.draw(shape.first)] for _ in _all(shape)]
    turns = [_turn(shape, 0, said, source, asked)]
    arrivals: list[list[float | None]] = [[None] * shape.conversations]
    moments = [0.0] * shape.conversations
    for _ in range(1, shape.turns):
        for talk in said:
            talk += [source.draw(shape.answer), source.draw(shape.turn)]
        turns.append(_turn(shape, len(turns), said, source, asked))
        thought = thinking.exponential(shape.think_s, shape.conversations).tolist()
        moments = [moment + one for moment, one in zip(moments, thought, strict=True)]
        arrivals.append([moment if shape.think_s else None for moment in moments])
    axes = {"conversations": float(shape.conversations)}
    return [
        Phase(NAME, "system prompt", (before,), instance=0, measured=False),
        Phase(
            NAME,
            "first turns",
            tuple(Request(p, shape.answer, reused_tokens=reused) for _, p, reused in turns[0]),
            concurrency=shape.conversations,
            axes=axes | {"turns": 1.0},
        ),
        Phase(
            NAME,
            f"turns 2 to {shape.turns}",
            _later(shape, turns, arrivals),
            concurrency=shape.conversations,
            axes=axes | {"turns": float(shape.turns)},
        ),
    ]


def _all(shape: ChatShape) -> range:
    return range(shape.conversations)


def _order(shape: ChatShape, turn: int) -> list[int]:
    """Conversations in the order of their requests.

    Requests go to two instances in turn, so the order of each turn begins one conversation later.
    """
    return [(place - turn) % shape.conversations for place in _all(shape)]


def _turn(
    shape: ChatShape, turn: int, said: list[list[Tokens]], source: TokenSource, asked: Asked
) -> list[tuple[int, tuple[int, ...], int]]:
    """Of each conversation: its number, prompt, and how much of that is known."""
    found = []
    for talk in _order(shape, turn):
        prompt = source.prompt(*said[talk])
        found.append((talk, prompt, asked.reused(prompt)))
    return found


def _later(
    shape: ChatShape,
    turns: list[list[tuple[int, tuple[int, ...], int]]],
    arrivals: list[list[float | None]],
) -> tuple[Request, ...]:
    last: dict[int, int] = {}
    requests: list[Request] = []
    for turn in range(1, shape.turns):
        for talk, prompt, reused in turns[turn]:
            requests.append(
                Request(
                    prompt,
                    shape.answer,
                    arrival_s=arrivals[turn][talk],
                    after=last.get(talk),
                    reused_tokens=reused,
                )
            )
            last[talk] = len(requests) - 1
    return tuple(requests)
