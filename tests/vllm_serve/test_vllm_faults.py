"""A real vLLM whose pool is not to be had: it serves without, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from instances import Pair, Serving, prompt
from vllm_server import VLLM

from lmcache_beluga import Pool


@pytest.fixture(scope="module")
def instances(serving: Serving) -> dict[str, tuple[Path, VLLM]]:
    folder = serving.pool.parent
    junk = folder / "no-pool.bin"
    junk.write_bytes(b"somebody's data" * 100_000)
    forbidden = folder / "somebody-elses"
    Pool.format(forbidden, size=64 << 20)
    forbidden.chmod(0)
    paths = {"wrong": folder / "missing" / "pool", "no-pool": junk, "forbidden": forbidden}
    return {
        what: (path, serving.start(f"pool-{what}", pool=path, privileged=False))
        for what, path in paths.items()
    }


@pytest.mark.parametrize("what", ["wrong", "no-pool", "forbidden"])
def test_serves_without(pair: Pair, instances: dict[str, tuple[Path, VLLM]], what: str) -> None:
    path, instance = instances[what]
    instance.wait()
    tokens = prompt(20)
    for _ in range(2):
        answer = instance.complete(tokens)
        assert answer.tokens == pair.alone.complete(tokens).tokens
        assert answer.cached == 0
        instance.forget()
    said = instance.told(
        "LMCache ERROR: LMCache goes on without the storage backend of lmcache-beluga"
    )
    assert len(said) == 1 and str(path) in said[0]
    assert ("permission denied" in said[0]) == (what == "forbidden")
    assert instance.metric("lmcache_beluga:attached") == 0
    assert instance.metric("vllm:external_prefix_cache_queries_total") > 0
    assert instance.metric("vllm:external_prefix_cache_hits_total") == 0
    instance.stop()
