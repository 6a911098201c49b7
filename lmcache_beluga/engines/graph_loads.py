"""Loads of LMCache in vLLM's process, also before vLLM replays a whole forward pass as one graph.

vLLM's newer model runner has no attention metadata at hand where it replays such a CUDA graph, as
it does by default for one token of each request: what is left to compute when a cache has the rest
of a prompt. LMCache 0.5.6 takes missing metadata for a trial run of vLLM's, loads nothing, and says
so in its debug log alone: vLLM then goes on from whatever is in the blocks. Seen with vLLM 0.25.1:
4 GiB "loaded" in 30 ms. LMCache looks at nothing of the metadata but whether there is any.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from lmcache_beluga.engines.tested_shape import takes

_CONNECTOR = "lmcache.integration.vllm.vllm_v1_adapter"
_CLASS, _METHOD = "LMCacheConnectorV1Impl", "start_load_kv"
_PARAMETERS = ("self", "forward_context", "kwargs")
_MARK = "loads_before_graphs"


def load_before_graphs() -> str:
    """Has LMCache load in this process whatever vLLM's runner is about to do. Idempotent.

    Why it cannot, if so: LMCache would then have vLLM compute with KV that was never loaded.
    Nothing to do where vLLM has not made such a connector.
    """
    module = sys.modules.get(_CONNECTOR)
    if module is None:
        return ""
    connector = getattr(module, _CLASS, None)
    stock = getattr(connector, _METHOD, None)
    if getattr(stock, _MARK, False):
        return ""
    if connector is None or not takes(stock, _PARAMETERS):
        return (
            f"{_CLASS}.{_METHOD} of this LMCache is not as it was in 0.5.6, which has to be helped "
            "to load before vLLM replays CUDA graphs, so that nothing is stored or loaded. Use "
            "LMCache 0.5.6, or LMCache's multiprocess mode (beluga lmcache-server with "
            "LMCacheMPConnector)"
        )

    @functools.wraps(stock)
    def start_load_kv(self: Any, forward_context: Any, **kwargs: Any) -> Any:
        if forward_context.attn_metadata is None and _has_loads(self):
            forward_context = _Attending(forward_context)
        return stock(self, forward_context, **kwargs)

    setattr(start_load_kv, _MARK, True)
    setattr(connector, _METHOD, start_load_kv)
    return ""


def _has_loads(connector: Any) -> bool:
    requests = connector._parent._get_connector_metadata().requests
    return any(one.load_spec is not None and one.load_spec.can_load for one in requests)


class _Attending:
    """A forward context that has attention metadata, if nobody looks into it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.attn_metadata: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
