"""Fails loads of LMCache's server whose leases have ended before the copies were launched.

LMCache 0.5.6 looks at chunks before it copies them (``unsafe_read``), and answers when copies to a
GPU are launched; to an engine without one, when it has read the bytes, or with their place in the
pool. A server that stands still in between, for longer than its leases last, goes on with what
others may have overwritten. So leases are looked at once more before it answers, and where one has
ended, the answer is that the load has failed: vLLM computes it again (``kv_load_failure_policy``).

Copies that are on their way by then end in time, however long the server stands still: a lease that
lasts is respected for some time more, with the default settings for 2.5 s at least (it is renewed
when half of ``beluga.lease`` is over, and lost when a heartbeat is half of ``beluga.dead_after``
late). In that time a PCIe 5 bus moves 130 GB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from lmcache.v1.multiprocess import object_group_transfer
from lmcache.v1.multiprocess.modules import lmcache_driven_transfer
from lmcache.v1.multiprocess.modules.server_transfer import (
    PickleTransferStrategy,
    PrepareRetrieveResponse,
    ShmTransferStrategy,
)

from lmcache_beluga._native import View
from lmcache_beluga.engines.l1_object import L1Object
from lmcache_beluga.engines.tested_shape import takes
from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.errors import BelugaError

_TRANSFER = "transfer_kv_per_object_group"
_TRANSFER_PARAMETERS = (
    "cache_context",
    "block_ids_gpu",
    "memory_objs",
    "object_group_id",
    "batch_size",
    "skip_first_n_tokens",
    "direction",
    "transfer_key",
    "block_ids_host",
)
_PREPARE_PARAMETERS = ("self", "key", "instance_id", "resolve_obj_keys")


def fail_lost_loads(lost_leases: Callable[[], int]) -> None:
    """Has servers in this process fail such loads from now on.

    Says so, and changes nothing, when LMCache does not load as it did when this was tested.

    Args:
        lost_leases: how many the server has noticed so far, of chunks that were being read.
    """
    transfer = getattr(lmcache_driven_transfer, _TRANSFER, None)
    copied = getattr(PickleTransferStrategy, "prepare_retrieve", None)
    mapped = getattr(ShmTransferStrategy, "prepare_retrieve", None)
    if not (
        takes(transfer, _TRANSFER_PARAMETERS)
        and takes(copied, _PREPARE_PARAMETERS)
        and takes(mapped, _PREPARE_PARAMETERS)
    ):
        logger.warning(
            "LMCache's server loads in another way: a lease lost meanwhile is logged, not undone"
        )
        return
    setattr(lmcache_driven_transfer, _TRANSFER, _to_gpu(transfer))
    PickleTransferStrategy.prepare_retrieve = _through_socket(copied, lost_leases)
    ShmTransferStrategy.prepare_retrieve = _mapped(mapped)


def _to_gpu(stock: Any) -> Any:
    """LMCache's ``retrieve`` takes an exception of it for a load that has failed."""
    load = object_group_transfer.lmcache_native.TransferDirection.H2D

    @functools.wraps(stock)
    def transfer(
        cache_context: Any,
        block_ids_gpu: Any,
        memory_objs: Any,
        object_group_id: int,
        batch_size: int,
        skip_first_n_tokens: int,
        direction: Any,
        *,
        transfer_key: str,
        block_ids_host: Any = (),
    ) -> None:
        stock(
            cache_context,
            block_ids_gpu,
            memory_objs,
            object_group_id,
            batch_size,
            skip_first_n_tokens,
            direction,
            transfer_key=transfer_key,
            block_ids_host=block_ids_host,
        )
        if direction == load and not _all_leased(memory_objs):
            raise BelugaError(
                "a lease ended before this load was launched, so it counts as failed and the "
                "engine computes the chunks again. This server stood still for longer than "
                "beluga.lease or beluga.dead_after, or the pool was formatted or truncated under it"
            )

    return transfer


def _all_leased(memory_objs: Sequence[Any]) -> bool:
    """Of what lies in the pool. Other memory is the server's own."""
    leases = [
        obj.hold for obj in memory_objs if type(obj) is L1Object and isinstance(obj.hold, View)
    ]
    return View.all_valid(leases)


def _through_socket(stock: Any, lost_leases: Callable[[], int]) -> Any:
    """There the locks are given back, and leases looked at, after the bytes were read. Whoever
    lost one in that time: a load too many that fails is only computed again."""

    @functools.wraps(stock)
    def prepare_retrieve(
        self: Any, key: Any, instance_id: int, resolve_obj_keys: Any
    ) -> PrepareRetrieveResponse:
        before = lost_leases()
        response = stock(self, key, instance_id, resolve_obj_keys)
        return response if lost_leases() == before else _failed()

    return prepare_retrieve


def _mapped(stock: Any) -> Any:
    """There the engine reads while the chunks are locked, from when it is told where they are."""

    @functools.wraps(stock)
    def prepare_retrieve(
        self: Any, key: Any, instance_id: int, resolve_obj_keys: Any
    ) -> PrepareRetrieveResponse:
        response = stock(self, key, instance_id, resolve_obj_keys)
        if not response.success:
            return response
        wanted = resolve_obj_keys(key)
        leased, _ = self._storage_manager.unsafe_read(wanted)
        if leased == wanted:
            return response
        self.commit_retrieve(key, instance_id)  # gives the locks back
        return _failed()

    return prepare_retrieve


def _failed() -> PrepareRetrieveResponse:
    return PrepareRetrieveResponse(success=False, data=b"", context={})
