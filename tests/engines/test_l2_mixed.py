"""In-process engines and multiprocess servers on one pool: what they share, and what they cannot.

LMCache 0.5.6 hashes prompts in two ways. As long as it does, the two kinds name no chunk alike, and
share the pool but no chunks. These tests fail when LMCache changes that.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import CHUNK, Engine, Options, prompt
from l2_harness import DTYPE, SIZE, create, load, lock, memory, payload, spec, store
from lmcache.utils import CacheEngineKey
from lmcache.v1 import token_database
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.multiprocess.token_hasher import TokenHasher
from server_harness import CHUNKS, Client, Server

from lmcache_beluga import Pool
from lmcache_beluga._native import encode_keys
from lmcache_beluga.engines.layout import LayoutCodec

# Of vLLM, as LMCache asks it for hash functions. CBOR tells null from an empty array, as repr does.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "builtin": hash,
    "sha256": lambda v: hashlib.sha256(pickle.dumps(v, protocol=5)).digest(),
    "sha256_cbor": lambda v: hashlib.sha256(repr(v).encode()).digest(),
}


@pytest.fixture(params=["without vLLM", "with vLLM"])
def vllm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.setattr(token_database, "NONE_HASH", token_database.NONE_HASH)
    if request.param == "without vLLM":
        monkeypatch.setitem(sys.modules, "vllm", None)
        return False
    names = ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.kv_cache_utils")
    modules = {
        name: types.ModuleType(name) for name in (*names, "vllm.utils", "vllm.utils.hashing")
    }
    cache: Any = modules["vllm.v1.core.kv_cache_utils"]

    def init_none_hash(function: Callable[[Any], Any]) -> None:
        cache.NONE_HASH = function(os.environ["PYTHONHASHSEED"])

    def get_hash_fn_by_name(name: str) -> Callable[[Any], Any]:
        if name not in FUNCTIONS:
            raise ValueError(name)
        return FUNCTIONS[name]

    cache.init_none_hash = init_none_hash
    hashing: Any = modules["vllm.utils.hashing"]
    hashing.get_hash_fn_by_name = get_hash_fn_by_name
    core: Any = modules["vllm.v1.core"]
    core.kv_cache_utils = cache
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return True


@pytest.mark.parametrize("algorithm", ["builtin", "sha256", "sha256_cbor", "blake3"])
def test_the_two_modes_hash_no_prompt_alike(vllm: bool, algorithm: str) -> None:
    """In process (prefix, tokens, ()) is hashed, digests cut to 64 bits; servers hash (prefix,
    tokens, None), whole digests, and by default with blake3, which in-process LMCache lacks."""
    tokens = list(range(4 * CHUNK))
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK, pre_caching_hash_algorithm=algorithm
    )
    database = token_database.ChunkedTokenDatabase(config)
    in_process = [found[2] for found in database.process_tokens(tokens, make_key=False)]
    servers = TokenHasher(CHUNK, algorithm).compute_chunk_hashes(tokens)
    assert len(in_process) == len(servers) == 4
    numbers = {value % 2**64 for value in in_process}
    assert not numbers & {int.from_bytes(digest[:8], "big") for digest in servers}


def test_equal_hashes_are_still_two_keys() -> None:
    """An ObjectKey names no dtype, so it cannot stand for a CacheEngineKey."""
    digest = bytes(range(8))
    number = int.from_bytes(digest, "big")
    rank = ObjectKey.ComputeKVRank(1, 0, 1, 0)
    keys = [
        CacheEngineKey("model", 1, 0, number, torch.bfloat16),
        CacheEngineKey("model", 1, 0, digest, torch.bfloat16),
        ObjectKey(digest, "model", rank),
    ]
    assert len(set(encode_keys(keys))) == 3


def test_one_pool_for_both(tmp_path: Path, pool: Path) -> None:
    """An in-process engine and an L2 adapter, as two hosts: each finds its own, bit for bit, and
    clearing the one leaves the other's."""
    hosts: dict[str, Any] = {
        "visibility": "noncoherent",
        "max_hosts": 2,
        "heartbeat": "20ms",
        "size": "64MiB",
        "extent_size": "4MiB",
    }
    beluga = {f"beluga.{name}": value for name, value in hosts.items()}
    options = Options(beluga={**beluga, "beluga.host_id": 1})
    adapter = create(spec(pool, **{**hosts, "host_id": 0}))
    try:
        with Engine(tmp_path / "lmcache.yaml", pool, options) as engine:
            tokens = prompt(4 * CHUNK, seed=1)
            wanted = engine.store(tokens, seed=1)
            hashes = [found[2].chunk_hash for found in _keys(engine, tokens)]
            rank = ObjectKey.ComputeKVRank(1, 0, 1, 0)
            keys = [
                ObjectKey(value.to_bytes(8, "big", signed=True), "test-model", rank)
                for value in hashes
            ]
            assert lock(adapter, keys) == [False] * 4
            assert store(adapter, keys, [payload(n) for n in range(4)]).bytes_transferred() > 0
            engine.expect_hit(tokens, wanted, "request")
            engine.lmcache.clear()
            assert engine.lookup(tokens, "again") == 0
            objects = [memory() for _ in keys]
            assert load(adapter, keys, objects) == [True] * 4
            assert [bytes(o.byte_array) for o in objects] == [payload(n) for n in range(4)]
            assert adapter.get_usage().total_bytes_used >= 4 * SIZE
    finally:
        adapter.close()


def _keys(engine: Engine, tokens: list[int]) -> list[Any]:
    return list(engine.lmcache.token_database.process_tokens(tokens))


def test_the_bytes_of_a_chunk_are_laid_out_alike(tmp_path: Path, pool: Path) -> None:
    """Both keep [2, layers, tokens, heads * size] of KV that vLLM keeps apart: only the names of
    chunks differ between the modes."""
    server = Server(tmp_path / "server.log", spec(pool)).wait()
    try:
        for number, mode in enumerate(("engine_driven", "lmcache_driven")):
            client = Client(server, mode)
            try:
                pages = client.store(number)
            finally:
                client.close()
            server.settle((number + 1) * CHUNKS)
            expected = torch.stack(pages, dim=1).reshape(2, len(pages), CHUNKS * 256, -1)
            wanted = {
                expected[:, :, at : at + 256].contiguous().view(torch.uint8).numpy().tobytes()
                for at in range(0, CHUNKS * 256, 256)
            }
            with Pool.attach(pool, heartbeat_ms=20) as looking:
                found = set()
                for entry in looking.keys():  # noqa: SIM118
                    layout = LayoutCodec().unpack(entry.meta, entry.size)
                    assert layout.shapes == [torch.Size([2, 4, 256, 256])]
                    assert layout.dtypes == [DTYPE]
                    assert layout.fmt is MemoryFormat.KV_2LTD
                    view = looking.get(entry.record)
                    assert view is not None
                    found.add(view.array.tobytes())
                    view.release()
            assert wanted <= found
    finally:
        server.stop()
