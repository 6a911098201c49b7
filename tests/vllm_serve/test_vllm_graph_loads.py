"""LMCache's own connector loads before vLLM replays a graph, for which it has no metadata."""

from __future__ import annotations

import subprocess

SCRIPT = """
from types import SimpleNamespace as Of
import torch
from lmcache.integration.vllm.vllm_v1_adapter import (
    LMCacheConnectorMetadata,
    LMCacheConnectorV1Impl,
)
from lmcache_beluga.engines.graph_loads import load_before_graphs

loads = []

class Engine:
    def retrieve(self, tokens, mask, **kwargs):
        loads.append(kwargs["req_id"])
        return torch.ones(len(tokens), dtype=torch.bool)

    def lookup_unpin(self, request):
        pass

spec = Of(can_load=True, vllm_cached_tokens=0, lmcache_cached_tokens=8)
request = Of(
    load_spec=spec,
    token_ids=list(range(8)),
    slot_mapping=torch.arange(8),
    request_configs=None,
    req_id="hit",
)
metadata = LMCacheConnectorMetadata()
metadata.requests = [request]
monitor = Of(
    update_interval_vllm_hit_tokens=lambda n: None, update_interval_prompt_tokens=lambda n: None
)
connector = object.__new__(LMCacheConnectorV1Impl)
connector.__dict__.update(
    _parent=Of(_get_connector_metadata=lambda: metadata),
    kv_caches={"layer": torch.zeros(1)},
    _manager=Of(lmcache_engine=Engine()),
    _stats_monitor=monitor,
    device="cpu",
    _lmcache_chunk_size=4,
    use_layerwise=False,
    enable_blending=False,
    async_loading=False,
)
connector.start_load_kv(Of(attn_metadata=None))
print("alone", loads)
assert load_before_graphs() == ""
connector.start_load_kv(Of(attn_metadata=None))
print("helped", loads)
"""


def test_lmcache_needs_help_and_gets_it(vllm_python: str) -> None:
    """If it loads alone, LMCache has mended it, and ``graph_loads`` can go."""
    ran = subprocess.run(
        [vllm_python, "-c", SCRIPT], capture_output=True, text=True, cwd="/", timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = ran.stdout.splitlines()
    assert "alone []" in lines
    assert "helped ['hit']" in lines
