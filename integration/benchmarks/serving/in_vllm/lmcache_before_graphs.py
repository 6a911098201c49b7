"""LMCache's connector for vLLM's process, mended for the comparison.

As it is in LMCache 0.5.6, it loads nothing before vLLM 0.25 replays a whole forward pass as one
CUDA graph. lmcache-beluga mends that wherever it is used; other backends are measured with the same
mend, since nothing that is not loaded can be compared.
"""

from __future__ import annotations

import lmcache.integration.vllm.vllm_v1_adapter  # noqa: F401  what is mended
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from lmcache_beluga.engines.graph_loads import load_before_graphs

__all__ = ["LMCacheConnectorV1"]

if unfit := load_before_graphs():
    raise ImportError(unfit)
