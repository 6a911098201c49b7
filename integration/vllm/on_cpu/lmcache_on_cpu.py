"""LMCacheConnectorV1 for vLLM's CPU backend, which LMCache 0.5.6 cannot move KV of.

vLLM takes it from here through ``kv_connector_module_path``. LMCache is imported when a connector
is made and no earlier: vLLM 0.32 looks through all modules for its kernels before that, and fails
on one of llvmlite's, which LMCache imports.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import lmcache_connector


class LMCacheConnectorV1(lmcache_connector.LMCacheConnectorV1):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        import lmcache.v1.gpu_connector as selection

        selection.CreateGPUConnector = lambda config, metadata, *_, **__: self.copies(metadata)
        super().__init__(*arguments, **named)

    def copies(self, metadata: Any) -> Any:
        """What LMCache calls a GPU connector."""
        import cpu_kv

        return cpu_kv.CPUKV(metadata)
