"""A prompt that one engine stored is loaded by another, bit for bit, in every mode LMCache has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engine_harness import CHUNK, Engine, Group, assert_same_bytes, prompt

from lmcache_beluga.engines.engine_reach import EngineReach

Start = Callable[..., Engine]

# LMCache lets a backend of this name allocate when it has no CPU memory of its own.
ALLOCATING = {"plugin": "LocalCPUBackend", "max_local_cpu_size": 0}

MODES = {
    "sync": {},
    "async": {"async_loading": True},
    "layerwise": {"layerwise": True},
    "layerwise-async": {"layerwise": True, "async_loading": True},
    "mla": {"mla": True},
    "mla-layerwise": {"mla": True, "layerwise": True},
    "kv-groups": {"groups": (Group(), Group(layers=3, heads=1, head_dim=64, dtype=torch.float32))},
    "allocating": ALLOCATING,
    "allocating-async": {**ALLOCATING, "async_loading": True},
    "allocating-layerwise": {**ALLOCATING, "layerwise": True},
    "allocating-kv-groups": {
        **ALLOCATING,
        "groups": (Group(dtype=torch.float16), Group(layers=1, head_dim=64)),
    },
    "audited": {"beluga": {"audit_backend_enabled": True}},
    "located": {"lmcache": {"store_location": "beluga", "retrieve_locations": ["beluga"]}},
}


@pytest.mark.parametrize("mode", MODES)
def test_loads_what_another_engine_stored(start: Start, mode: str) -> None:
    storing, loading = start(**MODES[mode]), start(**MODES[mode])
    tokens = prompt(4 * CHUNK + 10, seed=1)
    kv = storing.store(tokens, seed=1)
    for request in ("first", "second", "third"):
        loading.expect_hit(tokens, kv, request)
    storing.expect_hit(tokens, kv, "own")

    # Another prompt that begins alike.
    begin = tokens[: 3 * CHUNK]
    assert loading.lookup(begin + prompt(CHUNK, seed=2), "other") == len(begin)
    loaded, found = loading.retrieve(begin, "other")
    assert loaded == len(begin)
    assert_same_bytes(found, [layer[:, :loaded] for layer in kv])

    storing.assert_clean()
    loading.assert_clean()


@pytest.mark.parametrize("mode", ["sync", "layerwise", "async", "allocating"])
def test_partial_last_chunk(start: Start, mode: str) -> None:
    options = {**MODES[mode], "lmcache": {"save_unfull_chunk": True}}
    storing, loading = start(**options), start(**options)
    tokens = prompt(2 * CHUNK + 23, seed=1)
    kv = storing.store(tokens, seed=1)
    loading.expect_hit(tokens, kv, "request")
    # The next prompt goes on where this one ended, so its third chunk is another one.
    longer = tokens + prompt(CHUNK, seed=2)
    assert loading.lookup(longer, "longer") == 2 * CHUNK
    loading.retrieve(longer[: 2 * CHUNK], "longer")
    loading.assert_clean()


@pytest.mark.parametrize("mode", ["sync", "layerwise", "async", "mla", "allocating"])
def test_storing_again_changes_nothing(start: Start, mode: str) -> None:
    engine = start(**MODES[mode])
    tokens = prompt(3 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    chunks = engine.stats["chunks"]
    engine.store(tokens, seed=2)
    assert engine.stats["chunks"] == chunks
    engine.expect_hit(tokens, kv, "request")
    engine.assert_clean()


def test_retrieve_without_lookup(start: Start) -> None:
    engine = start()
    tokens = prompt(3 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    mask = torch.ones(len(tokens), dtype=torch.bool)
    mask[:CHUNK] = False
    loaded, _ = engine.retrieve(tokens, "no lookup", mask=mask)
    assert loaded == 2 * CHUNK
    found = engine.kv.read(engine.kv.slots(len(tokens), seed=7)[CHUNK:])
    assert_same_bytes(found, [layer[:, CHUNK:] for layer in kv])
    engine.assert_clean()


def test_request_tags_keep_prompts_apart(start: Start) -> None:
    storing, loading = start(), start()
    tokens = prompt(2 * CHUNK, seed=1)
    ann, bob = ({"lmcache.tag.user": name} for name in ("ann", "bob"))
    kv = {}
    for seed, tags in ((1, ann), (2, bob)):
        kv[seed] = storing.store(tokens, seed, request_configs=tags)
    assert loading.lookup(tokens, "untagged") == 0
    for seed, tags in ((1, ann), (2, bob)):
        assert loading.lookup(tokens, f"r{seed}", request_configs=tags) == len(tokens)
        loaded, found = loading.retrieve(tokens, f"r{seed}", request_configs=tags)
        assert loaded == len(tokens)
        assert_same_bytes(found, kv[seed])
    loading.assert_clean()


def test_models_share_a_pool(start: Start) -> None:
    """Chunks of different sizes and layouts side by side."""
    tokens = prompt(2 * CHUNK, seed=1)
    one = start(model="one")
    two = start(model="two", groups=(Group(layers=5, heads=1),))
    kv_one, kv_two = one.store(tokens, seed=1), two.store(tokens, seed=2)
    one.expect_hit(tokens, kv_one, "one")
    two.expect_hit(tokens, kv_two, "two")


def test_scheduler_looks_up_and_allocates_nothing(start: Start) -> None:
    """The scheduler's engine has no CPU backend and no connector."""
    worker, scheduler = start(), start(role="scheduler")
    tokens = prompt(2 * CHUNK, seed=1)
    worker.store(tokens, seed=1)
    assert list(scheduler.storage.storage_backends) == ["beluga"]
    assert scheduler.lookup(tokens + prompt(CHUNK, seed=2), "request") == len(tokens)
    assert scheduler.stats["pins"] == 2
    scheduler.lmcache.lookup_unpin("request")
    scheduler.assert_clean()


def test_chunks_of_a_long_prompt_know_their_depth(start: Start) -> None:
    """A prompt is stored in pieces, and its end is to be evicted first nevertheless."""
    engine = start()
    tokens = prompt(6 * CHUNK, seed=1)
    assert engine.lookup(tokens, "request") == 0
    for done in range(0, 6, 2):
        mask = torch.ones((done + 2) * CHUNK, dtype=torch.bool)
        mask[: done * CHUNK] = False
        engine.store(tokens[: len(mask)], seed=1, mask=mask)
    entries = list(engine.backend._pool.keys())
    assert sorted(entry.depth for entry in entries) == list(range(6))


def test_backend_is_recreated(start: Start) -> None:
    """LMCache's management API closes a backend and makes it again."""
    engine = start()
    tokens = prompt(2 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    closed = engine.backend
    assert "beluga" in engine.storage.recreate_backend("beluga")
    assert closed.batched_contains([], pin=True) == 0
    engine.expect_hit(tokens, kv, "request")
    engine.assert_clean()


@pytest.mark.parametrize("mode", ["sync", "async", "layerwise", "mla", "kv-groups"])
def test_copies_for_a_gpu_that_cannot_reach_the_pool(
    start: Start, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMCache's GPU connectors need memory that CUDA knows: LMCache's own."""
    storing, loading = start(**MODES[mode]), start(**MODES[mode])
    monkeypatch.setattr(EngineReach, "possible", False)
    tokens = prompt(3 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    loading.expect_hit(tokens, kv, "request")
    entry = next(loading.backend._pool.keys())
    (obj,) = loading.backend.batched_get_blocking([entry.record])
    assert obj.parent() is loading.storage.storage_backends["LocalCPUBackend"].memory_allocator
    obj.ref_count_down()
    loading.assert_clean()


def test_many_threads(start: Start) -> None:
    """LMCache looks up, loads and stores in different threads."""
    engine = start()
    prompts = [prompt(3 * CHUNK, seed) for seed in range(8)]
    backend = engine.backend
    keys = [
        [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]
        for tokens in prompts
    ]
    for seed, tokens in enumerate(prompts[:4]):
        engine.store(tokens, seed)
    expected = {}
    for chunk in keys[:4]:
        for key, obj in zip(chunk, backend.batched_get_blocking(chunk), strict=True):
            expected[key] = obj.tensor.clone()
            obj.ref_count_down()

    def work(number: int) -> int:
        hits = 0
        for step in range(64):
            chunk = keys[(number + step) % 8]
            hits += backend.batched_contains(chunk, pin=True)
            objs = [obj for obj in backend.batched_get_blocking(chunk) if obj is not None]
            for key, obj in zip(chunk, objs, strict=False):
                assert torch.equal(obj.tensor, expected[key])
                obj.ref_count_up()
                obj.ref_count_down()
            for obj in objs:
                obj.ref_count_down()
            for key in chunk:
                backend.unpin(key)
        return hits

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(work, range(4))) == 4 * 64 // 2 * 3
    engine.assert_clean()
