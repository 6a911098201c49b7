"""Connectors for ``vllm serve`` on the CPU: LMCache's own, made to work there.

vLLM takes them from here through ``kv_connector_module_path``. LMCache is imported no earlier than
a connector is made, which is after vLLM 0.32 has looked through all modules for its kernels: it
fails on an attribute of llvmlite, which LMCache imports.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1


class LMCacheConnectorOnCPU(LMCacheConnectorV1):
    """LMCacheConnectorV1; LMCache 0.5.6 has nothing to move KV of vLLM's CPU backend with."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        import cpu_kv
        import lmcache.v1.gpu_connector as selection

        selection.CreateGPUConnector = lambda config, metadata, *_, **__: cpu_kv.CPUKV(metadata)
        super().__init__(*arguments, **named)
