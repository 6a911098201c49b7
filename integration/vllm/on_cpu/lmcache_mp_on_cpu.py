"""LMCacheMPConnector as users configure it. To import it is to import LMCache, which vLLM 0.32 on
the CPU does not survive: it takes an attribute of llvmlite's for a kernel, and asks it for more
(see lmcache_on_cpu.py)."""

from __future__ import annotations

import llvmlite.binding.ffi

llvmlite.binding.ffi._lib_fn_wrapper.get = lambda self, *_: None

from lmcache_beluga.engines.vllm_mp import LMCacheMPConnector  # noqa: E402  after the line before

__all__ = ["LMCacheMPConnector"]
