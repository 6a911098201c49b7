"""Layer by layer, a chunk is many; it is whole, or it is not there."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from engine_harness import CHUNK, Engine, assert_same_bytes, prompt

Start = Callable[..., Engine]


def layers_of(engine: Engine, tokens: list[int]) -> list[list[object]]:
    """Per chunk, the keys of its layers."""
    chunks = engine.lmcache.token_database.process_tokens(tokens)
    return [key.split_layers(engine.layers) for _, _, key in chunks]


def test_chunk_with_a_layer_missing_is_stored_again(start: Start) -> None:
    """LMCache asks for the first layer alone, and would leave the chunk incomplete for good."""
    engine = start(layerwise=True)
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    assert engine.backend.remove(layers_of(engine, tokens)[1][1])
    assert engine.lookup(tokens, "before") == CHUNK
    engine.lmcache.lookup_unpin("before")
    kv = engine.store(tokens, seed=1)
    engine.expect_hit(tokens, kv, "after")
    engine.assert_clean()


@pytest.mark.parametrize("async_loading", [False, True])
def test_layers_of_an_incomplete_chunk_stay_unpinned(start: Start, async_loading: bool) -> None:
    engine = start(layerwise=True, async_loading=async_loading)
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    engine.backend.remove(layers_of(engine, tokens)[2][1])
    assert engine.lookup(tokens, "request") == 2 * CHUNK
    engine.retrieve(tokens[: 2 * CHUNK], "request")
    engine.assert_clean()

    engine.backend.remove(layers_of(engine, tokens)[0][1])
    assert engine.lookup(tokens, "nothing") == 0
    engine.lmcache.lookup_unpin("nothing")
    engine.assert_clean()


def test_chunk_that_vanishes_while_it_is_loaded(start: Start) -> None:
    """LMCache does not count what it gets per layer: short of an error it would load memory that
    was never written."""
    engine = start(layerwise=True)
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    backend, chunks = engine.backend, layers_of(engine, tokens)
    find_all = backend.contains

    def contains(key: object, pin: bool = False) -> bool:
        found = find_all(key, pin)
        backend.batched_remove([layers[1] for layers in chunks])
        return found

    backend.contains = contains
    with pytest.raises(LookupError, match="left the pool") as raised:
        engine.retrieve(tokens[:CHUNK], "request")
    # LMCache drops the layers it had with the frames of its loop.
    del raised
    gc.collect()
    engine.assert_clean()


@pytest.mark.parametrize("audit", [False, True])
def test_prompt_with_gaps_is_stored(start: Start, audit: bool) -> None:
    """LMCache would stop with an error at the second of two gaps."""
    engine = start(layerwise=True, beluga={"audit_backend_enabled": audit})
    tokens = prompt(6 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    chunks = layers_of(engine, tokens)
    assert engine.backend.batched_remove([chunks[1][0], chunks[3][1], chunks[5][0]]) == 3
    engine.store(tokens, seed=1)
    engine.expect_hit(tokens, kv, "request")
    assert engine.stats["chunks"] == 6 * engine.layers
    # Chunks before the first gap are not stored again.
    assert engine.backend.remove(chunks[4][0])
    duplicates = engine.stats["duplicates"]
    engine.store(tokens, seed=1)
    assert engine.stats["duplicates"] - duplicates == 2 * engine.layers - 1
    engine.assert_clean()


def test_clear_of_tokens_removes_all_layers(start: Start) -> None:
    """LMCache names whole chunks then, and its own backends remove nothing."""
    engine = start(layerwise=True)
    tokens = prompt(3 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    assert engine.lmcache.clear(torch.tensor(tokens[:CHUNK]), locations=["beluga"]) == 1
    assert engine.stats["chunks"] == 2 * engine.layers
    assert engine.lookup(tokens, "request") == 0
    engine.lmcache.lookup_unpin("request")
    engine.store(tokens, seed=1)
    assert engine.lookup(tokens, "again") == len(tokens)
    loaded, found = engine.retrieve(tokens, "again")
    assert loaded == len(tokens)
    assert_same_bytes(found, kv)
    engine.assert_clean()
