"""What LMCache offers no way for: the methods of LMCache that are wrapped, all of them here.

    StorageManager._get_allocator_backend   LMCache gathers KV in the pool, not in its CPU memory
    VLLMPagedMemGPUConnectorV2, V3
        .batched_to_gpu, .batched_from_gpu  chunks of the pool move at the speed of the bus
    LMCacheEngine.retrieve                  a chunk whose lease was lost counts as not loaded

Each does what it did before where no chunk of the pool is concerned. They are installed for the
versions in TESTED if the methods look as expected; otherwise stores are copied once, connectors
move chunks by themselves, and a lost lease is counted and logged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from lmcache.v1.cache_engine import LMCacheEngine
from lmcache.v1.gpu_connector.gpu_connectors import (
    VLLMPagedMemGPUConnectorV2,
    VLLMPagedMemGPUConnectorV3,
)
from lmcache.v1.storage_backend.storage_manager import StorageManager

from lmcache_beluga.engines import transfer
from lmcache_beluga.engines.tested_shape import takes

TESTED = ("0.5.6",)

_verdict = transfer.Verdict()
_installed = False


def install() -> str:
    """Wraps LMCache's methods, once per process; why not, or nothing if they are wrapped."""
    global _installed
    if _installed:
        return ""
    found = version("lmcache").partition("+")[0]
    if found not in TESTED:
        return f"LMCache {found} is not one of {', '.join(TESTED)}"
    for cls, name, parameters, _ in _METHODS:
        method = getattr(cls, name, None)
        if not takes(method, ("self", *parameters)):
            return f"{cls.__name__}.{name} is not as it was in LMCache {TESTED[-1]}"
    for cls, name, _, wrapper in _METHODS:
        _wrap(cls, name, wrapper)
    _installed = True
    return ""


def _wrap(cls: type, name: str, wrapper: Any) -> None:
    stock = getattr(cls, name)

    @functools.wraps(stock)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(self, stock, *args, **kwargs)

    setattr(cls, name, wrapped)


def _get_allocator_backend(self: Any, stock: Any, config: Any) -> Any:
    for backend in self.storage_backends.values():
        backend = getattr(backend, "real_backend", backend)  # LMCache's audit wraps backends
        if getattr(backend, "gathers_in_pool", False):
            return backend
    return stock(self, config)


def _batched_to_gpu(
    self: Any, stock: Any, objs: Any, starts: Any, ends: Any, **kwargs: Any
) -> None:
    allocator = transfer.allocator_of(objs)
    if allocator is None:
        stock(self, objs, starts, ends, **kwargs)
    else:
        transfer.load(allocator, _verdict, stock, self, objs, starts, ends, **kwargs)


def _batched_from_gpu(
    self: Any, stock: Any, objs: Any, starts: Any, ends: Any, **kwargs: Any
) -> None:
    allocator = transfer.allocator_of(objs)
    if allocator is None:
        stock(self, objs, starts, ends, **kwargs)
    else:
        transfer.store(allocator, stock, self, objs, starts, ends, **kwargs)


def _retrieve(self: Any, stock: Any, tokens: Any, mask: Any = None, **kwargs: Any) -> torch.Tensor:
    _verdict.awaited, _verdict.first_lost = True, None
    try:
        loaded: torch.Tensor = stock(self, tokens, mask, **kwargs)
    finally:
        _verdict.awaited = False
    if _verdict.first_lost is not None:
        with torch.inference_mode():
            loaded[_verdict.first_lost :] = False
    return loaded


_MOVES = ("memory_objs", "starts", "ends", "kwargs")
_METHODS: tuple[tuple[type, str, tuple[str, ...], Callable[..., Any]], ...] = (
    (StorageManager, "_get_allocator_backend", ("config",), _get_allocator_backend),
    (LMCacheEngine, "retrieve", ("tokens", "mask", "kwargs"), _retrieve),
    (VLLMPagedMemGPUConnectorV2, "batched_to_gpu", _MOVES, _batched_to_gpu),
    (VLLMPagedMemGPUConnectorV2, "batched_from_gpu", _MOVES, _batched_from_gpu),
    (VLLMPagedMemGPUConnectorV3, "batched_to_gpu", _MOVES, _batched_to_gpu),
    (VLLMPagedMemGPUConnectorV3, "batched_from_gpu", _MOVES, _batched_from_gpu),
)
"""Whose, which, with which parameters, and what is called instead."""
WRAPPED = tuple(f"{cls.__name__}.{name}" for cls, name, _, _ in _METHODS)
"""Names of the methods, for the log."""
