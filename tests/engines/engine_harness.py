"""A real LMCacheEngine, made from a YAML file, with the backend under test in it.

LMCache's own vLLM connectors move the KV. On the CPU they ask for a CUDA device and streams when
they are made; that, and nothing that moves bytes, is replaced here.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read when lmcache is imported: no telemetry, and only warnings on the terminal.
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "CRITICAL")
os.environ.setdefault("LMCACHE_DISABLE_BANNER", "1")

import torch
import yaml
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.event_manager import EventStatus, EventType
from lmcache.v1.gpu_connector import gpu_connectors
from lmcache.v1.gpu_connector.gpu_connectors import (
    VLLMPagedMemGPUConnectorV2,
    VLLMPagedMemGPUConnectorV3,
    VLLMPagedMemLayerwiseGPUConnector,
)
from lmcache.v1.kv_layer_groups import KVLayerGroupsManager
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.pin_monitor import PinMonitor
from lmcache.v1.platform.devices.cpu.stub_cpu_device import StubStream

BLOCK = 16
BLOCKS = 96
CHUNK = 64


@dataclass(frozen=True)
class Group:
    """Layers that are alike."""

    layers: int = 2
    heads: int = 2
    head_dim: int = 32
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Options:
    """What an engine is to be like."""

    layerwise: bool = False
    async_loading: bool = False
    mla: bool = False
    groups: tuple[Group, ...] = (Group(),)
    hot_cache: bool = False
    max_local_cpu_size: float = 0.05
    plugin: str = "beluga"
    """Name in storage_plugins. LMCache lets one named LocalCPUBackend allocate, if it has no CPU
    memory of its own."""
    role: str = "worker"
    rank: int = 0
    ranks: int = 1
    device: str = "cpu"
    model: str = "test-model"
    lmcache: dict[str, Any] = field(default_factory=dict)
    beluga: dict[str, Any] = field(default_factory=dict)


class StubbedStreams:
    """torch.cuda's streams do nothing while this is entered; the CPU build raises for them."""

    def __enter__(self) -> None:
        self._real = (torch.cuda.Stream, torch.cuda.current_stream, torch.cuda.stream)
        torch.cuda.Stream = StubStream
        torch.cuda.current_stream = lambda *args, **kwargs: StubStream()
        torch.cuda.stream = contextlib.nullcontext

    def __exit__(self, *exc: object) -> None:
        torch.cuda.Stream, torch.cuda.current_stream, torch.cuda.stream = self._real


class OneGroupConnector(VLLMPagedMemGPUConnectorV2):
    """LMCache's connector with its table of layer pointers in CPU memory."""

    def _initialize_pointers(self, kv_caches: list[torch.Tensor]) -> torch.Tensor:
        self.device = kv_caches[0].device
        if 0 not in self.kv_cache_pointers_on_gpu:
            c = gpu_connectors
            self.engine_kv_format, kv_caches = c.normalize_kv_and_discover_format(
                kv_caches, c.EngineType.VLLM, layout_hints=self.layout_hints
            )
            self.kv_cache_pointers[:] = torch.tensor([t.data_ptr() for t in kv_caches])
            self.kv_cache_pointers_on_gpu[0] = self.kv_cache_pointers
            self.num_blocks = c.get_num_blocks(kv_caches, self.engine_kv_format)
            self.block_size = c.get_block_size(kv_caches, self.engine_kv_format)
            self.page_buffer_size = self.num_blocks * self.block_size
            self.head_size = c.get_head_size(kv_caches, self.engine_kv_format)
            stride = c.resolve_block_stride_and_log_layout(
                kv_caches, self.engine_kv_format, layer_idx=0, group_idx=0
            )
            self.block_stride_elems = stride or 0
        return self.kv_cache_pointers_on_gpu[0]


class ManyGroupsConnector(VLLMPagedMemGPUConnectorV3):
    """LMCache's connector for models with several KV groups, made without a CUDA device."""

    def __init__(self, metadata: LMCacheMetadata, layout_hints: dict[str, str]) -> None:
        self.metadata = metadata
        self.device = torch.device("cpu")
        self.use_mla = metadata.use_mla
        self.chunk_size = metadata.chunk_size
        self.use_gpu = False
        self.layout_hints = layout_hints
        self.kvcaches = None
        self.init = False
        self.group_kv_cache_pointers_on_gpu = None
        self.group_tmp_buffer = None
        self.store_stream = StubStream()
        self.load_stream = StubStream()


class AsyncLookupServer:
    """Stands in for LMCache's, which answers the scheduler over a socket."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {}

    def send_response_to_scheduler(self, lookup_id: str, tokens: int) -> None:
        self.answers[lookup_id] = tokens


class PagedKV:
    """KV of all layers in pages, as vLLM keeps it."""

    def __init__(self, options: Options) -> None:
        self.mla = options.mla
        self.layers: list[torch.Tensor] = []
        for group in options.groups:
            shape = (2, BLOCKS, BLOCK, group.heads, group.head_dim)
            if self.mla:
                shape = (BLOCKS, BLOCK, group.heads * group.head_dim)
            self.layers += [
                torch.zeros(shape, dtype=group.dtype, device=options.device)
                for _ in range(group.layers)
            ]

    def slots(self, tokens: int, seed: int) -> torch.Tensor:
        """A slot for each token, in blocks scattered by ``seed``."""
        blocks = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(seed))
        slots = blocks[: -(-tokens // BLOCK), None] * BLOCK + torch.arange(BLOCK)[None]
        return slots.reshape(-1)[:tokens].to(self.layers[0].device)

    def read(self, slots: torch.Tensor) -> list[torch.Tensor]:
        """Bytes of each layer's KV in ``slots``, a copy."""
        return [self._flat(layer)[:, slots].view(torch.uint8) for layer in self.layers]

    def write_random(self, slots: torch.Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            flat = self._flat(layer)
            noise = torch.randn((flat.shape[0], len(slots), flat.shape[2]), generator=generator)
            flat[:, slots] = noise.to(layer.device, layer.dtype)

    def scramble(self) -> None:
        """Overwrite everything, so that a load which does nothing cannot go unnoticed."""
        for layer in self.layers:
            layer.view(torch.uint8).fill_(0x5A)

    def _flat(self, layer: torch.Tensor) -> torch.Tensor:
        planes = 1 if self.mla else 2
        return layer.view(planes, BLOCKS * BLOCK, -1)


class Engine:
    """One LMCacheEngine and its paged KV, with the serving engine's side of each step."""

    count = 0

    def __init__(self, yaml_file: Path, pool: Path, options: Options = Options()) -> None:
        Engine.count += 1
        self.options = options
        self.name = f"engine-{os.getpid()}-{Engine.count}"
        self.kv = PagedKV(options)
        self.layers = len(self.kv.layers)
        write_yaml(yaml_file, pool, options)
        config = LMCacheEngineConfig.from_file(str(yaml_file))
        self.metadata = _metadata(self.name, options)
        self.server = AsyncLookupServer() if options.async_loading else None
        self._streams = StubbedStreams()
        if options.device == "cpu":
            self._streams.__enter__()
        try:
            self.lmcache = LMCacheEngineBuilder.get_or_create(
                self.name,
                config,
                self.metadata,
                _connector(self.metadata, self.kv, options),
                lambda tensor, source: tensor,
                lambda value, source: value,
            )
            self.lmcache.post_init(async_lookup_server=self.server)
            self.storage = self.lmcache.storage_manager
        except BaseException:
            self.close()
            raise

    @property
    def backend(self) -> Any:
        """The backend under test. LMCache only logs it when that does not start."""
        assert self.options.plugin in self.storage.storage_backends
        backend = self.storage.storage_backends[self.options.plugin]
        return getattr(backend, "real_backend", backend)  # LMCache's audit wraps backends

    @property
    def stats(self) -> dict[str, int]:
        return self.backend._pool.stats()

    @property
    def chunks(self) -> int:
        """Keys in the pool, whichever host owns their chunks."""
        return len({entry.record for entry in self.backend._pool.keys()})  # noqa: SIM118

    def store(self, tokens: list[int], seed: int, **kwargs: Any) -> list[torch.Tensor]:
        """Compute the prompt's KV (random bytes) and store it; the bytes of each layer."""
        slots = self.kv.slots(len(tokens), seed)
        self.kv.write_random(slots, seed)
        kwargs = {"kvcaches": self.kv.layers, "slot_mapping": slots, "req_id": "store", **kwargs}
        prompt = torch.tensor(tokens)
        if self.options.layerwise:
            # The caller's steps of one forward pass: one before each layer, one at the end.
            steps = self.lmcache.store_layer(prompt, sync=True, **kwargs)
            for _ in range(self.layers + 1):
                next(steps)
        else:
            self.lmcache.store(prompt, **kwargs)
        return self.kv.read(slots)

    def lookup(self, tokens: list[int], request: str, **kwargs: Any) -> int:
        """How many leading tokens are cached. They are pinned for ``request``."""
        prompt = torch.tensor(tokens)
        if not self.options.async_loading:
            return self.lmcache.lookup(prompt, lookup_id=request, pin=True, **kwargs)
        self.server.answers.pop(request, None)
        self.lmcache.async_lookup_and_prefetch(request, prompt, pin=True, **kwargs)
        deadline = time.monotonic() + 30
        while request not in self.server.answers:
            assert time.monotonic() < deadline, "no answer to the asynchronous lookup"
            time.sleep(0.002)
        return self.server.answers[request]

    def retrieve(
        self, tokens: list[int], request: str, seed: int = 7, unpin: bool = True, **kwargs: Any
    ) -> tuple[int, list[torch.Tensor]]:
        """Load the prompt's KV into pages nobody wrote to; tokens loaded, bytes of each layer."""
        slots = self.kv.slots(len(tokens), seed)
        self.kv.scramble()
        kwargs = {"kvcaches": self.kv.layers, "slot_mapping": slots, "req_id": request, **kwargs}
        prompt = torch.tensor(tokens)
        if self.options.layerwise:
            steps = self.lmcache.retrieve_layer(prompt, sync=True, **kwargs)
            for _ in range(self.layers + 2):
                mask = next(steps)
        else:
            mask = self.lmcache.retrieve(prompt, **kwargs)
        if unpin:
            self.lmcache.lookup_unpin(request)
        loaded = int(mask.sum())
        return loaded, self.kv.read(slots[:loaded])

    def expect_hit(self, tokens: list[int], expected: list[torch.Tensor], request: str) -> None:
        """Look up and load all whole chunks of the prompt, from the pool, bit for bit."""
        before = self.stats
        whole = len(tokens)
        if not self.lmcache.config.save_unfull_chunk:
            whole -= whole % CHUNK
        assert self.lookup(tokens, request) == whole
        loaded, found = self.retrieve(tokens[:whole], request)
        assert loaded == whole
        assert_same_bytes(found, [layer[:, :whole] for layer in expected])
        assert self.stats["gets"] > before["gets"], "the pool did not serve the read"

    def assert_clean(self) -> None:
        """LMCache's allocators are sound, and nothing in the pool is held."""
        assert self.storage.memcheck()
        stats = self.stats
        held = {name: stats[name] for name in ("views", "pins", "writing", "lost_leases")}
        assert held == dict.fromkeys(held, 0)

    def prefetch_done(self, request: str) -> bool:
        status = self.lmcache.event_manager.get_event_status(EventType.LOADING, request)
        return status == EventStatus.DONE

    def close(self) -> None:
        try:
            LMCacheEngineBuilder.destroy(self.name)
            PinMonitor.DestroyInstance()
        finally:
            if self.options.device == "cpu":
                self._streams.__exit__()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def write_yaml(yaml_file: Path, pool: Path, options: Options) -> None:
    """The configuration of LMCache, as an operator writes it."""
    extra = {
        f"storage_plugin.{options.plugin}.module_path": "lmcache_beluga",
        f"storage_plugin.{options.plugin}.class_name": "BelugaBackend",
        "beluga.pool": str(pool),
        "beluga.size": "64MiB",
        "beluga.extent_size": "4MiB",
        **options.beluga,
    }
    config = {
        "chunk_size": CHUNK,
        "local_cpu": options.hot_cache,
        "max_local_cpu_size": options.max_local_cpu_size,
        "use_layerwise": options.layerwise,
        "enable_async_loading": options.async_loading,
        "storage_plugins": [options.plugin],
        "extra_config": {key: value for key, value in extra.items() if value is not None},
        **options.lmcache,
    }
    yaml_file.write_text(yaml.safe_dump(config))


def prompt(tokens: int, seed: int) -> list[int]:
    """Token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 32000, (tokens,), generator=generator).tolist()


def assert_same_bytes(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for layer, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"layer {layer} differs"


def _metadata(name: str, options: Options) -> LMCacheMetadata:
    first = options.groups[0]
    layers = sum(group.layers for group in options.groups)
    planes = 1 if options.mla else 2
    return LMCacheMetadata(
        model_name=options.model,
        world_size=options.ranks,
        local_world_size=options.ranks,
        worker_id=options.rank,
        local_worker_id=options.rank,
        kv_dtype=first.dtype,
        kv_shape=(layers, planes, CHUNK, first.heads, first.head_dim),
        use_mla=options.mla,
        role=options.role,
        engine_id=name,
        chunk_size=CHUNK,
    )


def _connector(metadata: LMCacheMetadata, kv: PagedKV, options: Options) -> Any:
    hints = {"kv_layout": "NHD"}
    device = torch.device(options.device)
    on_cpu = device.type == "cpu"
    if options.role == "scheduler":
        return None
    if options.layerwise:
        return VLLMPagedMemLayerwiseGPUConnector.from_metadata(metadata, True, device, hints)
    if len(options.groups) == 1:
        one = OneGroupConnector if on_cpu else VLLMPagedMemGPUConnectorV2
        return one.from_metadata(metadata, False, device, hints)
    if on_cpu:
        connector = ManyGroupsConnector(metadata, hints)
    else:
        connector = VLLMPagedMemGPUConnectorV3.from_metadata(metadata, False, device, hints)
    # vLLM registers its KV before the first store, and LMCache learns the groups from it.
    connector.initialize_kvcaches_ptr(kvcaches=kv.layers)
    connector._initialize_kv_cache_pointers()
    assert isinstance(metadata.kv_layer_groups_manager, KVLayerGroupsManager)
    return connector
