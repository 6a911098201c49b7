from __future__ import annotations

from dataclasses import dataclass

from lmcache_beluga.engines.prefix_depths import PrefixDepths


@dataclass
class Key:
    chunk_hash: int


def keys(*hashes: int) -> list[Key]:
    return [Key(h) for h in hashes]


def test_pieces_of_a_prompt_in_their_places() -> None:
    depths = PrefixDepths()
    depths.looked_up(keys(1, 2, 3, 4, 5, 6), hits=2)
    assert depths.first_of(keys(3, 4)) == 2
    assert depths.first_of(keys(5, 6)) == 4


def test_unknown_chunks_start_at_zero() -> None:
    depths = PrefixDepths()
    assert depths.first_of(keys(9)) == 0
    depths.looked_up(keys(1, 2, 3), hits=3)
    assert depths.first_of(keys(3)) == 0


def test_latest_prompt_counts() -> None:
    depths = PrefixDepths()
    depths.looked_up(keys(1, 2, 3), hits=0)
    depths.looked_up(keys(7, 8, 9, 2), hits=0)
    assert depths.first_of(keys(2)) == 3


def test_few_prompts_are_remembered() -> None:
    depths = PrefixDepths()
    depths.looked_up(keys(0, 1), hits=0)
    for i in range(2, 40):
        depths.looked_up(keys(i), hits=0)
    assert depths.first_of(keys(1)) == 0
