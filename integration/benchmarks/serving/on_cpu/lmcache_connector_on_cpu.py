"""LMCache's in-process connector for a vLLM on the CPU, which LMCache 0.5.6 has no copies for.

Given to vLLM as ``kv_connector_module_path``. For trying the benchmark without a GPU; its times
say nothing about one. vLLM's CPU backend keeps, for each layer, one tensor of shape
[blocks, heads, block_size, 2 * head_size], and may lay out the inside of a block as it likes, so
whole blocks are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1


class LMCacheConnectorOnCPU(LMCacheConnectorV1):  # type: ignore[misc]
    """vLLM's connector, with copies for CPU tensors given to LMCache.

    LMCache is imported here and no earlier: vLLM 0.32 looks through all modules when a worker
    starts, and fails at one that LMCache brings.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        import lmcache.v1.gpu_connector as lmcache
        from lmcache.utils import EngineType

        create = lmcache.CreateGPUConnector

        def on_cpu(config: Any, metadata: Any, engine: Any, **options: Any) -> Any:
            if engine == EngineType.VLLM:
                return _copies(metadata)
            return create(config, metadata, engine, **options)

        lmcache.CreateGPUConnector = on_cpu
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)


def _copies(metadata: Any) -> Any:
    from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface

    layers, kv, _, heads, head_size = metadata.kv_shape

    class Copies(GPUConnectorInterface):  # type: ignore[misc]
        kvcaches: list[torch.Tensor]

        def from_gpu(self, memory_obj: Any, start: int, end: int, **options: Any) -> None:
            blocks = self._blocks(start, end, options)
            for number, layer in enumerate(self.kvcaches):
                part = memory_obj.tensor[:, number]
                part.copy_(layer[blocks].reshape(part.shape))

        def to_gpu(self, memory_obj: Any, start: int, end: int, **options: Any) -> None:
            blocks = self._blocks(start, end, options)
            # vLLM's own prefix blocks may be in use by others.
            skipped = max(0, options.get("vllm_cached_tokens", 0) - start)
            first = skipped // self.kvcaches[0].shape[2]
            for number, layer in enumerate(self.kvcaches):
                values = memory_obj.tensor[:, number].reshape(len(blocks), *layer.shape[1:])
                layer[blocks[first:]] = values[first:]

        def batched_from_gpu(
            self, memory_objs: Any, starts: Any, ends: Any, **options: Any
        ) -> None:
            for chunk in zip(memory_objs, starts, ends, strict=True):
                self.from_gpu(*chunk, **options)

        def batched_to_gpu(self, memory_objs: Any, starts: Any, ends: Any, **options: Any) -> None:
            for chunk in zip(memory_objs, starts, ends, strict=True):
                self.to_gpu(*chunk, **options)

        def get_shape(self, num_tokens: int) -> torch.Size:
            return torch.Size([kv, layers, num_tokens, heads * head_size])

        def initialize_kvcaches_ptr(self, **options: Any) -> None:
            if "kvcaches" in options:
                self.kvcaches = options["kvcaches"]

        def _blocks(self, start: int, end: int, options: dict[str, Any]) -> Any:
            self.initialize_kvcaches_ptr(**options)
            size = self.kvcaches[0].shape[2]
            slots = options["slot_mapping"][start:end].view(-1, size)
            if not bool((slots[:, 0] % size == 0).all()):
                raise ValueError("chunks must be whole blocks of vLLM")
            return slots[:, 0] // size

    return Copies()
