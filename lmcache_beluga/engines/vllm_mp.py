"""LMCache's connector of vLLM to its servers, in processes whose threads take turns quickly.

    --kv-transfer-config '{"kv_connector": "LMCacheMPConnector",
                           "kv_connector_module_path": "lmcache_beluga.engines.vllm_mp", ...}'

Nothing of the connector is changed. When prompts come in bursts, a thread of vLLM hashes one after
the other, while another asks LMCache for the first and has it loaded, in dozens of short steps:
with Python's own turns of 5 ms the first load begins when the last prompt has been hashed.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_mp_connector import LMCacheMPConnector

from lmcache_beluga.engines.turns import take_turns_quickly

__all__ = ["LMCacheMPConnector"]

take_turns_quickly()
