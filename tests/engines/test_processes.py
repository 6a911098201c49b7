"""Engines in processes of their own, on one pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_harness import CHUNK
from engine_process import EngineProcess

HostOf = Callable[[dict[str, Any]], dict[str, Any]]
Launch = Callable[..., EngineProcess]

SEED = {"PYTHONHASHSEED": "0"}

# What LMCache takes from vLLM: a hash function, and the first value of the chain of hashes, which
# is random unless PYTHONHASHSEED is set.
VLLM = {
    "vllm/__init__.py": "",
    "vllm/v1/__init__.py": "",
    "vllm/v1/core/__init__.py": "",
    "vllm/utils/__init__.py": "",
    "vllm/utils/hashing.py": """
def get_hash_fn_by_name(name):
    return {"builtin": hash}[name]
""",
    "vllm/v1/core/kv_cache_utils.py": """
import os
def init_none_hash(function):
    global NONE_HASH
    seed = os.getenv("PYTHONHASHSEED")
    NONE_HASH = os.urandom(32) if seed is None else function(seed)
""",
}


@pytest.fixture
def launch(tmp_path: Path, pool: Path, host_of: HostOf) -> Iterator[Launch]:
    """Starts engines in processes; they do not wait for each other to be up."""
    processes: list[EngineProcess] = []

    def launch(environment: dict[str, str] = SEED, **options: Any) -> EngineProcess:
        options["beluga"] = host_of(options.get("beluga", {}))
        yaml_file = tmp_path / f"lmcache-process-{len(processes)}.yaml"
        processes.append(EngineProcess(yaml_file, pool, environment, **options))
        return processes[-1]

    yield launch
    for process in processes:
        process.close()


def test_two_engines_share_a_pool(launch: Launch) -> None:
    one, two = launch(), launch()
    stored = {}
    for number, (storing, loading) in enumerate([(one, two), (two, one)]):
        stored[number] = storing.do("store", tokens=5 * CHUNK, seed=number)
        hit, loaded, found = loading.do("load", tokens=5 * CHUNK, seed=number)
        assert (hit, loaded, found) == (5 * CHUNK, 5 * CHUNK, stored[number])
    # Both at once, on the same prompts.
    for process in (one, two):
        for seed in range(10, 15):
            process.ask("store", tokens=8 * CHUNK, seed=seed)
            process.ask("load", tokens=8 * CHUNK, seed=seed)
    for process in (one, two):
        for _ in range(10, 15):
            digest = process.answer()
            assert process.answer() == [8 * CHUNK, 8 * CHUNK, digest]
    assert one.do("chunks") == 2 * 5 + 5 * 8
    assert one.do("clean") and two.do("clean")


@pytest.mark.parametrize("mode", [{}, {"layerwise": True}], ids=["whole", "layerwise"])
def test_never_wrong_while_chunks_are_evicted(launch: Launch, mode: dict[str, bool]) -> None:
    """The prompts do not fit into the pool; each engine evicts what the other may be loading."""
    small = {"beluga.size": "4MiB", "beluga.extent_size": "512KiB"}
    engines = [launch(beluga=small, **mode) for _ in range(2)]
    for seed, engine in enumerate(engines):
        engine.do("store", tokens=CHUNK, seed=100 + seed)  # each host has something of the pool
    for seed, engine in enumerate(engines):
        engine.ask("churn", steps=40, prompts=16, tokens=8 * CHUNK, seed=seed)
    for engine in engines:
        loaded, missing, wrong = engine.answer()
        assert wrong == 0
        assert loaded > 0 and missing > 0
    # Of two hosts one may make all the room.
    assert sum(engine.do("stats")["evictions"] for engine in engines) > 0
    for engine in engines:
        assert engine.do("clean")
        # A store is refused when all chunks of its host are being loaded at one moment: seldom.
        assert [said for said in engine.do("log") if "is in use" not in said] == []
        stats = engine.do("stats")
        assert stats["refused_leased"] <= stats["puts"] // 20


def test_tensor_parallel_ranks(launch: Launch) -> None:
    """Each rank finds its own shard of a prompt, and no other's, also when it comes back."""
    ranks = [launch(rank=rank, ranks=2) for rank in (0, 1)]
    for rank in ranks:
        rank.ask("store", tokens=4 * CHUNK, seed=1)
    digests = [rank.answer() for rank in ranks]
    assert digests[0] != digests[1]
    for rank, digest in zip(ranks, digests, strict=True):
        assert rank.do("load", tokens=4 * CHUNK, seed=1) == [4 * CHUNK, 4 * CHUNK, digest]
        assert rank.do("clean")
    assert ranks[0].do("chunks") == 8
    for rank in ranks:
        rank.close()
    again = launch(rank=1, ranks=2)
    assert again.do("load", tokens=4 * CHUNK, seed=1) == [4 * CHUNK, 4 * CHUNK, digests[1]]


def test_hashes_that_differ_between_processes(launch: Launch, tmp_path: Path) -> None:
    """PYTHONHASHSEED is not set: each process would store what no other can find."""
    for name, text in VLLM.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    unset = {"PYTHONPATH": str(tmp_path)}
    one = launch(unset)
    assert "beluga" in one.do("backends")
    two = launch(unset)
    assert "beluga" not in two.do("backends")
    (said,) = two.do("log")
    assert "KeySchemeError" in said and "set PYTHONHASHSEED=0" in said
    # It goes on without the pool.
    two.do("store", tokens=2 * CHUNK, seed=1)
    assert two.do("load", tokens=2 * CHUNK, seed=1)[:2] == [0, 0]
