"""A real LMCache engine outside a serving engine, configured by a YAML file.

On a CUDA machine LMCache's vLLM connector runs as it is. On the CPU the same connector runs with
two things replaced that only exist on a GPU: streams, and the table of device pointers.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

from lmcache_beluga.demo.paged_kv import KVShape, PagedKV


class CacheEngine:
    """One LMCache engine and the paged KV cache it fills and drains.

    A context manager: LMCache leaves a non-daemon thread behind if an engine is not destroyed, and
    the process would hang at its end.

    Args:
        name: unique in the process.
        config_file: YAML file, as a user writes it.
        kv: the paged cache stored from and loaded into.
        backend: name that must be among the engine's storage backends. LMCache only logs when a
            backend fails to start, and would run on without it.
        model_name: part of every chunk's key.

    Raises:
        RuntimeError: the backend is not there.
    """

    def __init__(
        self,
        name: str,
        config_file: Path,
        kv: PagedKV,
        backend: str,
        model_name: str = "beluga-demo",
    ) -> None:
        from lmcache.utils import mock_up_broadcast_fn, mock_up_broadcast_object_fn
        from lmcache.v1.cache_engine import LMCacheEngineBuilder
        from lmcache.v1.config import LMCacheEngineConfig

        self._builder = LMCacheEngineBuilder
        self.name = name
        self.kv = kv
        config = LMCacheEngineConfig.from_file(str(config_file))
        self.chunk_size: int = config.chunk_size
        metadata = _metadata(name, kv.shape, self.chunk_size, model_name)
        self.lmcache = self._builder.get_or_create(
            name,
            config,
            metadata,
            _connector(metadata, kv),
            mock_up_broadcast_fn,
            mock_up_broadcast_object_fn,
        )
        try:
            self.lmcache.post_init(async_lookup_server=None)
            self.backends: list[str] = list(self.lmcache.storage_manager.storage_backends)
            if backend not in self.backends:
                raise RuntimeError(
                    f"LMCache runs without the backend {backend!r} (it has {self.backends}); "
                    "its log says why it did not start"
                )
            self.backend = self.lmcache.storage_manager.storage_backends[backend]
        except BaseException:
            self.close()
            raise

    def lookup(self, tokens: Any, request: str) -> int:
        """Number of leading tokens that are cached; pins them for ``request``."""
        return int(self.lmcache.lookup(tokens, lookup_id=request, pin=True))

    def store(self, tokens: Any) -> None:
        """Store the KV of all full chunks of ``tokens`` (int64 tensor) from the paged cache."""
        self.lmcache.store(
            tokens, kvcaches=self.kv.layers, slot_mapping=self.kv.slot_mapping, req_id="store"
        )

    def retrieve(self, tokens: Any, request: str) -> int:
        """Load cached KV of ``tokens`` into the paged cache, unpin; the number of tokens loaded."""
        mask = self.lmcache.retrieve(
            tokens, kvcaches=self.kv.layers, slot_mapping=self.kv.slot_mapping, req_id=request
        )
        self.lmcache.lookup_unpin(request)
        return int(mask.sum())

    def close(self) -> None:
        """Destroy the engine; idempotent."""
        self._builder.destroy(self.name)

    def __enter__(self) -> CacheEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _metadata(name: str, shape: KVShape, chunk_size: int, model_name: str) -> Any:
    from lmcache.v1.metadata import LMCacheMetadata

    return LMCacheMetadata(
        model_name=model_name,
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=shape.dtype,
        kv_shape=(shape.layers, 2, chunk_size, shape.heads, shape.head_dim),
        role="worker",
        engine_id=name,
        chunk_size=chunk_size,
    )


def _connector(metadata: Any, kv: PagedKV) -> Any:
    from lmcache.v1.gpu_connector import gpu_connectors

    hints = {"kv_layout": "NHD"}
    device = kv.layers[0].device
    if device.type == "cuda":
        return gpu_connectors.VLLMPagedMemGPUConnectorV2.from_metadata(
            metadata, False, device, hints
        )
    _stub_streams()

    class OnCPU(gpu_connectors.VLLMPagedMemGPUConnectorV2):  # type: ignore[misc]
        """LMCache's connector, with the pointer table kept in CPU memory."""

        def _initialize_pointers(self, kv_caches: list[Any]) -> Any:
            self.device = kv_caches[0].device
            if 0 in self.kv_cache_pointers_on_gpu:
                return self.kv_cache_pointers_on_gpu[0]
            self.engine_kv_format, caches = gpu_connectors.normalize_kv_and_discover_format(
                kv_caches, gpu_connectors.EngineType.VLLM, layout_hints=self.layout_hints
            )
            self.kv_cache_pointers.numpy()[:] = [cache.data_ptr() for cache in caches]
            self.kv_cache_pointers_on_gpu[0] = self.kv_cache_pointers
            self.num_blocks = gpu_connectors.get_num_blocks(caches, self.engine_kv_format)
            self.block_size = gpu_connectors.get_block_size(caches, self.engine_kv_format)
            self.page_buffer_size = self.num_blocks * self.block_size
            self.head_size = gpu_connectors.get_head_size(caches, self.engine_kv_format)
            stride = gpu_connectors.resolve_block_stride_and_log_layout(
                caches, self.engine_kv_format, layer_idx=0, group_idx=0
            )
            self.block_stride_elems = stride or 0
            return self.kv_cache_pointers_on_gpu[0]

    return OnCPU.from_metadata(metadata, False, device, hints)


def _stub_streams() -> None:
    """Give ``torch.cuda`` streams that do nothing: the CPU build's raise when they are made."""
    import torch
    from lmcache.v1.platform.devices.cpu.stub_cpu_device import StubStream

    torch.cuda.Stream = StubStream
    torch.cuda.current_stream = lambda *args, **kwargs: StubStream()
    torch.cuda.stream = contextlib.nullcontext
