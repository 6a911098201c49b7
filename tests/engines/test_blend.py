"""CacheBlend in LMCache's own server, with the pool as its L2.

Up to the load into the server's memory. What comes then, spreading the chunks over an engine's KV
at other positions, is a kernel of LMCache's for CUDA, on that memory alone.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from l2_harness import spec
from mp_servers import CHUNK, OPTIONS, Prompt, clear_l1, comes, compute, engine, request
from processes import wait_until

from lmcache_beluga.demo.mp_engine import MPEngine
from lmcache_beluga.demo.mp_server import MPServer


def unified_lookup(engine: MPEngine, tokens: list[int], name: str) -> Any:
    """What a vLLM with CacheBlend asks for each request."""
    key = engine._key(tokens, name, 0, len(tokens), "", worker=None)
    deadline = time.monotonic() + 20
    while (found := engine._client.cb_unified_lookup(key, 1).result(timeout=10)) is None:
        assert time.monotonic() < deadline, "the lookup does not end"
        time.sleep(0.01)
    return found


def when_registered(engine: MPEngine, tokens: list[int]) -> tuple[str, Any]:
    """The request that found something, and what. A thread of LMCache's registers what was stored,
    in its own time, and no status tells when it is done."""
    deadline = time.monotonic() + 20
    while not (found := unified_lookup(engine, tokens, name := request())).non_prefix_segments:
        assert time.monotonic() < deadline, "what was stored is not registered"
        engine.end(name)
        time.sleep(0.01)
    return name, found


def test_chunks_of_another_prompt_come_from_the_pool(pool: Path, tmp_path: Path) -> None:
    l2 = json.dumps(spec(pool, heartbeat="20ms"))
    memory = ("--l1-size-gb", "0.1", "--no-l1-use-lazy", "--eviction-policy", "LRU")
    options = (*OPTIONS, *memory, "--engine-type", "blend", "--l2-adapter", l2)
    with MPServer(tmp_path / "log", None, options) as server:
        server.wait()
        with engine(server, "lmcache_driven") as one:
            known, new = Prompt(6), Prompt(2)
            compute(one, known)
            comes(one, known)
            wait_until(lambda: adapters(server)[0]["chunks"] == known.chunks)
            clear_l1(server)
            # Chunks 1 to 4 of the known prompt, one chunk later, behind chunks of the new one.
            tokens = [*new.tokens[: 2 * CHUNK], *known.tokens[CHUNK : 5 * CHUNK]]
            name, found = when_registered(one, tokens)
            assert found.prefix_coverage_tokens == 0
            shifts = [(one.old_st, one.cur_st) for one in found.non_prefix_segments]
            assert shifts[-3:] == [(i * CHUNK, (i + 1) * CHUNK) for i in (2, 3, 4)]
            assert server.l1()["read_locked_count"] == len(shifts)
            one.end(name)
            wait_until(lambda: server.l1()["read_locked_count"] == 0)
            wait_until(lambda: adapters(server)[0]["locked"] == 0)
            assert adapters(server)[0]["is_healthy"]
    assert "Traceback" not in server.log.read_text()


def adapters(server: MPServer) -> list[dict[str, Any]]:
    return list(server.http("/status")["storage_manager"]["l2_adapters"])
