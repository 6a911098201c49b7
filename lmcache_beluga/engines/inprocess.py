"""LMCache's in-process storage plugin: the pool as a storage backend and as an allocator."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.storage_backend.abstract_backend import (
    AllocatorBackendInterface,
    StoragePluginInterface,
)
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

from lmcache_beluga.config import Settings
from lmcache_beluga.engines import lmcache_hooks
from lmcache_beluga.engines.allocator import PoolAllocator
from lmcache_beluga.engines.attached_gauge import set_attached
from lmcache_beluga.engines.clearing import remove_chunks_of
from lmcache_beluga.engines.engine_reach import EngineReach
from lmcache_beluga.engines.graph_loads import load_before_graphs
from lmcache_beluga.engines.layerwise_gaps import storing_after_a_gap
from lmcache_beluga.engines.layout import Layout, LayoutCodec
from lmcache_beluga.engines.prefix_depths import PrefixDepths
from lmcache_beluga.engines.reader import ChunkReader
from lmcache_beluga.engines.trouble import TroubleLog, log_as_lmcache, logger
from lmcache_beluga.engines.vllm_version import moves_half
from lmcache_beluga.engines.writer import ChunkWriter
from lmcache_beluga.errors import BelugaError, KeySchemeError, UnsupportedError
from lmcache_beluga.keys import hash_scheme, hash_scheme_advice
from lmcache_beluga.pool import Pool, PutResult

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata

Shapes: TypeAlias = torch.Size | Sequence[torch.Size]
Dtypes: TypeAlias = torch.dtype | Sequence[torch.dtype]

ALLOCATION_WAIT_S = 5.0
"""How long an allocation with ``busy_loop`` waits for chunks in use to be released."""

MAX_PINS = 1 << 16
"""More pins of one chunk than requests that may wait at once."""


class BelugaBackend(StoragePluginInterface, AllocatorBackendInterface):  # type: ignore[misc]
    """Stores LMCache's KV chunks in a pool that other engines and hosts share.

    LMCache makes it from its YAML file: ``storage_plugins``, and ``beluga.*`` in ``extra_config``.
    Retrieved objects are views of the pool under lease; copies where LMCache's hot cache would keep
    them, and for devices that cannot reach the pool. Stored objects are copied once, or not at all
    where LMCache has no CPU memory of its own (``max_local_cpu_size: 0``) and therefore allocates
    here. A GPU reaches the pool through memory that is registered with CUDA.

    What goes wrong with the pool at run time is logged, and LMCache is told of a miss or stores
    nothing. Only layerwise loading of a chunk that vanished in the middle raises LookupError:
    LMCache would otherwise use uninitialised memory as KV.

    Raises BelugaError from its constructor, which LMCache logs and then goes on without it.
    """

    def __init__(
        self,
        config: LMCacheEngineConfig,
        metadata: LMCacheMetadata,
        local_cpu_backend: LocalCPUBackend | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        dst_device: str = "cpu",
    ) -> None:
        super().__init__(
            dst_device=dst_device,
            config=config,
            metadata=metadata,
            local_cpu_backend=local_cpu_backend,
            loop=loop,
        )
        log_as_lmcache()
        try:
            settings = Settings.from_extra_config(config.extra_config, os.environ)
            if wrong := moves_half(torch.device(dst_device).type, metadata.use_mla):
                raise UnsupportedError(wrong)
            if unfit := load_before_graphs():
                raise UnsupportedError(unfit)
            self._pool = self._open(settings)
            self._reach = self._connect(torch.device(dst_device), settings.prefault)
        except BelugaError as error:
            self._tell_attached(False)
            logger.error(
                "LMCache goes on without the storage backend of lmcache-beluga. %s: %s",
                type(error).__name__,
                error,
            )
            raise
        self._layerwise: bool = config.use_layerwise
        self._blending: bool = config.enable_blending
        self._num_layers: int = metadata.kv_shape[0]
        self._closed = False
        self._trouble = TroubleLog()
        self._depths = PrefixDepths()
        self._prefetch_pins: dict[str, Sequence[CacheEngineKey]] = {}
        self._hooked = settings.lmcache_hooks and self._take_hooks()
        self.gathers_in_pool = self._hooked and self._gather_in_pool()
        """Whether LMCache is to allocate here what it stores, though it has memory of its own."""
        self.memory_allocator = self.initialize_allocator(config, metadata)
        self._codec = LayoutCodec()
        parts = (self._pool, self._codec, self.memory_allocator, self._trouble)
        self._reader = ChunkReader(*parts, self._reach)
        self._writer = ChunkWriter(*parts)
        self._tell_attached(True)
        logger.info("attached to pool %s as %s", self._pool.uuid, metadata.role)

    def _tell_attached(self, attached: bool) -> None:
        set_attached(self.metadata.model_name, self.metadata.worker_id, attached)

    def _take_hooks(self) -> bool:
        unfit = lmcache_hooks.install()
        if unfit:
            logger.warning(
                "LMCache is used as it is (%s), so chunks are copied once more when they are "
                "stored, and a lease lost during a load is reported, not undone",
                unfit,
            )
        else:
            logger.info("methods of LMCache are wrapped (%s)", ", ".join(lmcache_hooks.WRAPPED))
        return not unfit

    def _gather_in_pool(self) -> bool:
        # Where LMCache's hot cache keeps what is stored, that has to be in LMCache's memory.
        gathers = self._reach.possible and not self.config.local_cpu and not self.config.enable_pd
        local = self.local_cpu_backend
        if gathers and local is not None:
            # Asked by LMCache to know what to copy for its own CPU backend, which keeps nothing.
            own = local.get_allocator_backend
            local.get_allocator_backend = lambda: own() if local.use_hot else self
        return bool(gathers)

    def _connect(self, device: torch.device, prefault: bool) -> EngineReach:
        # Layerwise connectors launch the copies of a layer, and do not wait for those of the last.
        reach = EngineReach(self._pool, device, self.config.use_layerwise, everything=prefault)
        if not reach.possible and self.local_cpu_backend is None:
            self._pool.close()
            raise UnsupportedError(
                "LMCache's GPU connectors need memory that is registered with CUDA, and the pool's "
                "is not: give LMCache CPU memory of its own, a max_local_cpu_size of 1 (GB) or more"
            )
        return reach

    def _open(self, settings: Settings) -> Pool:
        arguments = settings.pool_arguments()
        scheme = arguments.setdefault("key_scheme", hash_scheme(self.config, self.metadata))
        try:
            return Pool.open(**arguments)
        except KeySchemeError as error:
            arguments["key_scheme"] = None
            with Pool.open(**arguments) as pool:
                formatted = pool.info.key_scheme
            advice = hash_scheme_advice(scheme, formatted) if formatted else ""
            raise KeySchemeError(f"{error}. {advice}".rstrip()) from None

    def __str__(self) -> str:
        return "BelugaBackend"

    # Lookup

    def contains(self, key: CacheEngineKey, pin: bool = False) -> bool:
        """Whether the pool has ``key``; with ``pin``, it is kept until ``unpin``.

        The first layer of a chunk answers for all its layers: LMCache asks for that one alone,
        both to decide what to load and what to store.
        """
        try:
            if pin:
                return self._pool.pin(key)
            if self._layerwise and isinstance(key, LayerCacheEngineKey) and key.layer_id == 0:
                layers = key.split_layers(self._num_layers)
                present = self._pool.contains_prefix(layers) == len(layers)
                return present and not storing_after_a_gap()
            return self._pool.contains_prefix((key,)) == 1
        except Exception as error:
            self._failed("lookup", error)
            return False

    def batched_contains(self, keys: list[CacheEngineKey], pin: bool = False) -> int:
        """Length of the longest prefix of ``keys`` that the pool has; with ``pin``, it is kept."""
        try:
            hits = self._contains_prefix(keys, pin)
            if pin and self._layerwise and hits < len(keys):
                # The layers of one chunk. LMCache takes an incomplete chunk for a miss, but does
                # not unpin what there is of it.
                self._unpin_all(keys[:hits])
            return hits
        except Exception as error:
            self._failed("lookup", error)
            return 0

    async def batched_async_contains(
        self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False
    ) -> int:
        """As batched_contains. LMCache never releases these pins; the get that follows does."""
        try:
            hits = self._contains_prefix(keys, pin)
        except Exception as error:
            self._failed("lookup", error)
            return 0
        if pin:
            self.cancel_request(lookup_id)
            # LMCache gets whole chunks only, and unpins the layers of an incomplete one itself.
            whole = hits - hits % self._num_layers if self._layerwise else hits
            if whole:
                self._prefetch_pins[lookup_id] = keys[:whole]
        return hits

    def exists_in_put_tasks(self, key: CacheEngineKey) -> bool:
        """False: a put is complete when it returns."""
        return False

    def touch_cache(self) -> None:
        """Nothing: the pool noted the use of chunks, prefixes before suffixes, at the lookup."""

    def _contains_prefix(self, keys: list[CacheEngineKey], pin: bool) -> int:
        hits = self._pool.pin_prefix(keys) if pin else self._pool.contains_prefix(keys)
        if not self._layerwise:
            self._depths.looked_up(keys, hits)
        return hits

    # Get

    def get_blocking(self, key: CacheEngineKey) -> MemoryObj | None:
        """The object stored under ``key``, None when there is none."""
        # StorageManager.get puts it into the hot cache without asking whether that is switched on.
        return self._get([key], hot_cache=isinstance(self.local_cpu_backend, LocalCPUBackend))[0]

    def batched_get_blocking(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """The objects under ``keys``, with None from the first that is missing on."""
        return self._get(keys, hot_cache=self._hot_cache_on())

    def get_non_blocking(
        self, key: CacheEngineKey, location: str | None = None
    ) -> Future[MemoryObj] | None:
        """A future that is done, with the object stored under ``key``; None when there is none."""
        obj = self.get_blocking(key)
        if obj is None:
            return None
        future: Future[MemoryObj] = Future()
        future.set_result(obj)
        return future

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: list[CacheEngineKey], transfer_spec: Any = None
    ) -> list[MemoryObj]:
        """The objects under ``keys`` up to the first that is missing.

        Raises LookupError in layerwise loading when one is missing.
        """
        objs: list[MemoryObj] = []
        try:
            # LMCache does not write these back to its hot cache, so views will do.
            if self._reach.possible:
                objs = self._reader.views(keys)
            if not self._reach.possible and self.local_cpu_backend is not None:
                rest = keys[len(objs) :]
                objs += await asyncio.to_thread(self._reader.copies, rest, self.local_cpu_backend)
        except Exception as error:
            self._failed("get", error)
        # From here on the objects' own leases hold the chunks.
        self.cancel_request(lookup_id)
        # Prefetches name the lengths of the chunks; LMCache counts what it gets and uses no more.
        # The get of one layer names nothing, and LMCache does not count: it would load the rest of
        # a buffer that was never filled.
        if self._layerwise and transfer_spec is None and len(objs) < len(keys):
            for obj in objs:
                obj.ref_count_down()
            raise LookupError(
                f"{len(keys) - len(objs)} of {len(keys)} KV chunks of a layer left the pool while "
                "their request was being loaded layer by layer, which LMCache cannot undo. Its "
                "lookup pins them for beluga.pin_timeout: raise that if loading takes longer"
            )
        return objs

    def _hot_cache_on(self) -> bool:
        # Not the configuration: LMCache's API switches it on and off at run time.
        return bool(getattr(self.local_cpu_backend, "use_hot", False))

    def _get(self, keys: list[CacheEngineKey], hot_cache: bool) -> list[MemoryObj | None]:
        objs: list[MemoryObj | None] = []
        try:
            # The hot cache keeps what a blocking get returns, and views would keep the pool's
            # chunks leased for ever.
            if self._reach.possible and not hot_cache:
                objs += self._reader.views(keys)
            if hot_cache or (not self._reach.possible and self.local_cpu_backend is not None):
                objs += self._reader.copies(keys[len(objs) :], self.local_cpu_backend)
        except Exception as error:
            self._failed("get", error)
        return objs + [None] * (len(keys) - len(objs))

    # Put

    def batched_submit_put_task(
        self,
        keys: Sequence[CacheEngineKey],
        objs: list[MemoryObj],
        transfer_spec: Any = None,
        on_complete_callback: Callable[[CacheEngineKey], None] | None = None,
    ) -> None:
        """Store each object under its key, before returning.

        ``on_complete_callback`` is called with each key that was stored, not with those that the
        pool already had or has no room for.
        """
        try:
            first_depth = self._depths.first_of(keys) if keys else 0
            results = self._writer.put(keys, objs, first_depth)
        except Exception as error:
            self._failed("put", error)
            return
        if on_complete_callback is None:
            return
        for key, result in zip(keys, results, strict=True):
            if result is PutResult.STORED:
                try:
                    on_complete_callback(key)
                except Exception as error:
                    logger.warning("LMCache's on_complete_callback failed: %r", error)

    async def async_batched_submit_put_task(
        self,
        keys: Sequence[CacheEngineKey],
        objs: list[MemoryObj],
        transfer_spec: Any = None,
        on_complete_callback: Callable[[CacheEngineKey], None] | None = None,
    ) -> None:
        """As batched_submit_put_task, in another thread."""
        await asyncio.to_thread(
            self.batched_submit_put_task, keys, objs, transfer_spec, on_complete_callback
        )

    # Pins, removal

    def pin(self, key: CacheEngineKey) -> bool:
        """Keep the chunk until ``unpin``, or for beluga.pin_timeout; False when there is none."""
        try:
            return self._pool.pin(key)
        except Exception as error:
            self._failed("pin", error)
            return False

    def unpin(self, key: CacheEngineKey) -> bool:
        """Undo one ``pin``; False when there is none, which is no error: pins lapse."""
        try:
            return self._pool.unpin(key)
        except Exception as error:
            self._failed("unpin", error)
            return False

    def cancel_request(self, req_id: str) -> None:
        """Drop the pins of a prefetch that will not be fetched."""
        keys = self._prefetch_pins.pop(req_id, None)
        if keys:
            try:
                self._unpin_all(keys)
            except Exception as error:
                self._failed("unpin", error)

    def _unpin_all(self, keys: Sequence[CacheEngineKey]) -> None:
        for key in keys:
            self._pool.unpin(key)

    def remove(self, key: CacheEngineKey, force: bool = True) -> bool:
        """Remove the chunk under ``key`` (in layerwise mode, all its layers).

        ``force`` gives up this process's pins first; without it, what this process pins stays. What
        is being read, or pinned by others, is no longer found but keeps its bytes until then. True
        when something was removed.
        """
        return self.batched_remove([key], force) > 0

    def batched_remove(self, keys: list[CacheEngineKey], force: bool = True) -> int:
        """Remove chunks as ``remove`` does; how many were removed."""
        try:
            keys = [part for key in keys for part in self._parts(key)]
            if force:
                self._unpin_wholly(keys)
            else:
                keys = [key for key in keys if not self._pinned(key)]
            return self._pool.remove(keys)
        except Exception as error:
            self._failed("remove", error)
            return 0

    def _unpin_wholly(self, keys: Sequence[CacheEngineKey]) -> None:
        for key in keys:
            for _ in range(MAX_PINS):
                if not self._pool.unpin(key):
                    break

    def _pinned(self, key: CacheEngineKey) -> bool:
        return self._pool.unpin(key) and self._pool.pin(key)

    def _parts(self, key: CacheEngineKey) -> list[CacheEngineKey]:
        # LMCache's clear(tokens) removes keys of whole chunks; layerwise stores only layers.
        if self._layerwise and not isinstance(key, LayerCacheEngineKey):
            return list(key.split_layers(self._num_layers))
        return [key]

    def clear(self) -> int:
        """Remove every chunk of this engine's model and rank; the number of tokens removed.

        Other models' and ranks' chunks in the same pool stay. What is being read is no longer
        found, but keeps its bytes until then.
        """
        try:
            model, rank = self.metadata.model_name, self.metadata.worker_id
            return remove_chunks_of(self._pool, self._codec, model, self._ranks_in_keys(), rank)
        except Exception as error:
            self._failed("clear", error)
            return 0

    def _ranks_in_keys(self) -> int:
        # As LMCache's TokenDatabase has it: when one rank stores for all, keys do not tell how many
        # there are.
        if self.metadata.use_mla and self.config.get_extra_config_value(
            "save_only_first_rank", True
        ):
            return 1
        return int(self.metadata.world_size)

    # Allocation

    def get_allocator_backend(self) -> AllocatorBackendInterface:
        """Whose memory objects are to be in when they are put here: LMCache's CPU memory, unless
        there is none, or LMCache was made to gather KV here.

        Not always this backend: LMCache would copy into it with one thread, and only the first
        tensor of objects with several KV groups.
        """
        here = self.local_cpu_backend is None or self.gathers_in_pool
        return self if here else self.local_cpu_backend

    def initialize_allocator(
        self, config: LMCacheEngineConfig, metadata: LMCacheMetadata
    ) -> PoolAllocator:
        """An allocator over the pool."""
        return PoolAllocator(self._pool, self._trouble, self._reach, self._hooked)

    def get_memory_allocator(self) -> PoolAllocator:
        """The allocator over the pool."""
        return self.memory_allocator

    def allocate(
        self,
        shapes: Shapes,
        dtypes: Dtypes,
        fmt: MemoryFormat | None = None,
        eviction: bool = True,
        busy_loop: bool = True,
    ) -> MemoryObj | None:
        """A slot of the pool to write to; None when there is no room.

        The pool always evicts, so ``eviction`` changes nothing; ``busy_loop`` waits a while for
        chunks in use.
        """
        obj = self.memory_allocator.allocate(
            shapes, dtypes, self._format(fmt), wait_s=ALLOCATION_WAIT_S if busy_loop else 0.0
        )
        if obj is None and not self._reach.possible and self.local_cpu_backend is not None:
            # CUDA took no more of the pool's memory: LMCache gathers in its own, as without hooks.
            obj = self.local_cpu_backend.allocate(shapes, dtypes, fmt, eviction, busy_loop)
        return obj

    def batched_allocate(
        self,
        shapes: Shapes,
        dtypes: Dtypes,
        batch_size: int,
        fmt: MemoryFormat | None = None,
        eviction: bool = True,
        busy_loop: bool = True,
    ) -> list[MemoryObj] | None:
        """``batch_size`` slots alike, or None; otherwise as ``allocate``."""
        objs = self.memory_allocator.batched_allocate(
            shapes,
            dtypes,
            batch_size,
            self._format(fmt),
            wait_s=ALLOCATION_WAIT_S if busy_loop else 0.0,
        )
        if objs is None and not self._reach.possible and self.local_cpu_backend is not None:
            objs = self.local_cpu_backend.batched_allocate(
                shapes, dtypes, batch_size, fmt, eviction, busy_loop
            )
        return objs

    def calculate_chunk_budget(self) -> int:
        """How many of LMCache's chunks the pool holds at most."""
        layout = Layout.of(self.metadata.get_shapes(), self.metadata.get_dtypes(), self._format())
        nbytes = layout.nbytes // (self._num_layers if self._layerwise else 1)
        return self._pool.info.capacity // max(1, nbytes)

    def _format(self, fmt: MemoryFormat | None = None) -> MemoryFormat:
        # LMCache's store leaves it to the allocator, which here knows what LocalCPUBackend does.
        if fmt is not None:
            return fmt
        if not self._layerwise:
            return MemoryFormat.KV_2LTD
        return MemoryFormat.KV_2TD if self._blending else MemoryFormat.KV_T2D

    # Life

    def close(self) -> None:
        """Detach from the pool. Chunks stay in it; leases and pins of this backend end."""
        if self._closed:
            return
        self._closed = True
        self._tell_attached(False)
        self._prefetch_pins.clear()
        self.memory_allocator.close()
        self._reach.close()
        self._pool.close()

    def _failed(self, operation: str, error: Exception) -> None:
        # After close, misses are what LMCache asked for.
        if not self._closed:
            self._trouble.failed(operation, error)
            if self._pool.closed:
                self._tell_attached(False)
