"""remove, clear, freeze and bypass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from engine_harness import CHUNK, Engine, prompt
from processes import wait_until

Start = Callable[..., Engine]


def test_clear_of_tokens(start: Start) -> None:
    engine, other = start(), start()
    tokens = prompt(4 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    assert engine.lmcache.clear(torch.tensor(tokens[: 2 * CHUNK])) == 2
    assert engine.stats["chunks"] == 2
    assert other.lookup(tokens, "request") == 0


def test_clear_leaves_other_models_and_ranks(start: Start) -> None:
    tokens = prompt(3 * CHUNK, seed=1)
    engine = start(model="cleared", ranks=2)
    others = [start(model="cleared", ranks=2, rank=1), start(model="cleared-2"), start(model="c")]
    layers = start(model="cleared", ranks=2, layerwise=True)
    engine.store(tokens, seed=1)
    kept = [other.store(tokens, seed=2) for other in others]
    layers.store(prompt(CHUNK, seed=2), seed=3)
    # Layers count one by one, as in LMCache's own clear.
    assert engine.lmcache.clear(locations=["beluga"]) == len(tokens) + layers.layers * CHUNK
    assert engine.lookup(tokens, "request") == 0
    for other, kv in zip(others, kept, strict=True):
        other.expect_hit(tokens, kv, "kept")
    engine.assert_clean()


def test_clear_of_an_mla_engine(start: Start) -> None:
    """One rank stores for all, and keys do not tell how many there are."""
    engine = start(mla=True, ranks=2)
    engine.store(prompt(2 * CHUNK, seed=1), seed=1)
    assert engine.lmcache.clear(locations=["beluga"]) == 2 * CHUNK
    assert engine.stats["chunks"] == 0


def test_removed_while_it_is_read(start: Start) -> None:
    """Nobody finds it any more, and its reader's bytes stay."""
    small = {"beluga.size": "8MiB", "beluga.extent_size": "1MiB"}
    reading, removing = start(beluga=small), start(beluga=small)
    tokens = prompt(2 * CHUNK, seed=1)
    reading.store(tokens, seed=1)
    keys = [key for _, _, key in reading.lmcache.token_database.process_tokens(tokens)]
    (obj,) = reading.backend.batched_get_blocking(keys[:1])
    before = obj.tensor.clone()
    assert removing.backend.remove(keys[0])
    # The owner, if it is another host, does it at its next heartbeat.
    wait_until(lambda: not removing.backend.contains(keys[0]))
    assert not removing.backend.remove(keys[0])
    assert reading.lookup(tokens, "request") == 0
    for seed in range(2, 20):
        removing.store(prompt(20 * CHUNK, seed), seed)
    assert removing.stats["evictions"] > 0
    assert torch.equal(obj.tensor, before)
    obj.ref_count_down()
    reading.assert_clean()


def test_forced_removal_gives_up_own_pins(start: Start) -> None:
    engine = start()
    tokens = prompt(2 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    keys = [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]
    engine.lookup(tokens, "one")
    engine.lookup(tokens, "two")
    assert not engine.backend.remove(keys[0], force=False)
    assert engine.stats["pins"] == 4
    assert engine.backend.remove(keys[0])
    assert engine.stats["pins"] == 2
    engine.lmcache.lookup_unpin("one")
    engine.lmcache.lookup_unpin("two")
    assert engine.backend.remove(keys[1], force=False)
    engine.assert_clean()


def test_freeze(start: Start) -> None:
    """LMCache then stores nothing, and asks its own CPU memory alone."""
    engine = start()
    tokens = prompt(2 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    engine.lmcache.freeze(True)
    assert engine.lookup(tokens, "frozen") == 0
    engine.store(prompt(2 * CHUNK, seed=2), seed=2)
    assert engine.stats["chunks"] == 2
    engine.lmcache.freeze(False)
    engine.expect_hit(tokens, kv, "thawed")
    engine.assert_clean()


def test_freeze_with_all_memory_in_the_pool(start: Start) -> None:
    """The pool is LMCache's CPU memory then, and goes on answering."""
    engine = start(plugin="LocalCPUBackend", max_local_cpu_size=0)
    tokens = prompt(2 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    engine.lmcache.freeze(True)
    engine.expect_hit(tokens, kv, "frozen")
    engine.store(prompt(2 * CHUNK, seed=2), seed=2)
    assert engine.stats["chunks"] == 2
    engine.assert_clean()


def test_bypass(start: Start) -> None:
    engine = start()
    tokens = prompt(2 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    engine.storage.set_backend_bypass("beluga", True)
    assert engine.lookup(tokens, "bypassed") == 0
    engine.store(prompt(2 * CHUNK, seed=2), seed=2)
    assert engine.stats["chunks"] == 2
    engine.storage.set_backend_bypass("beluga", False)
    engine.expect_hit(tokens, kv, "back")
    engine.assert_clean()
