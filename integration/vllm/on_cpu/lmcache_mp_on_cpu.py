"""LMCacheMPConnector as it is. To import it is to import LMCache, which vLLM 0.32 on the CPU does
not survive: it takes an attribute of llvmlite's for a kernel, and asks it for more (see
lmcache_on_cpu.py)."""

from __future__ import annotations

import llvmlite.binding.ffi

llvmlite.binding.ffi._lib_fn_wrapper.get = lambda self, *_: None

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_mp_connector import (  # noqa: E402
    LMCacheMPConnector,
)

__all__ = ["LMCacheMPConnector"]
