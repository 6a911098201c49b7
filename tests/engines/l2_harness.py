"""LMCache's L2 adapters as its servers use them: made from JSON, asked when told."""

from __future__ import annotations

import argparse
import json
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import (
    L2AdapterInterface,
    create_l2_adapter,
    plugin_l2_adapter,
)
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

# LMCache imports its adapters one after the other, with S3 and all, until it finds this one.
assert plugin_l2_adapter

SHAPE = torch.Size([2, 2, 64, 64])
DTYPE = torch.bfloat16
SIZE = SHAPE.numel() * DTYPE.itemsize

WAIT_S = 60


def spec(pool: Path, **params: Any) -> dict[str, Any]:
    """As an operator gives it to ``--l2-adapter``."""
    return {
        "type": "plugin",
        "module_path": "lmcache_beluga",
        "class_name": "BelugaL2Adapter",
        "adapter_params": {"pool": str(pool), "size": "64MiB", "extent_size": "4MiB", **params},
    }


def create(spec: dict[str, Any]) -> L2AdapterInterface:
    """The adapter, made as LMCache's server makes it."""
    parsed = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(spec)]))
    return create_l2_adapter(parsed.adapters[0])


def memory(
    data: bytes = bytes(SIZE), shape: torch.Size = SHAPE, dtype: torch.dtype = DTYPE
) -> TensorMemoryObj:
    """An object of a server's L1 that holds ``data``, for as many bytes as its shape has."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    metadata = MemoryObjMetadata(
        shape=shape,
        dtype=dtype,
        address=0,
        phy_size=raw.numel(),
        ref_count=1,
        fmt=MemoryFormat.KV_2LTD,
        shapes=[shape],
        dtypes=[dtype],
    )
    return TensorMemoryObj(raw, metadata, parent_allocator=None)


def wait(fd: int) -> None:
    """Until the descriptor is readable; reads it."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(WAIT_S * 1000), "the adapter does not answer"
    consume_fd(fd)


def ask(fd: int, query: Callable[[int], Any], task: int) -> Any:
    """The result of a lookup or load."""
    while (result := query(task)) is None:
        wait(fd)
    return result


def stored(adapter: L2AdapterInterface, task: int) -> Any:
    """The result of a store, when no other is under way."""
    ends: dict[int, Any] = {}
    while task not in ends:
        wait(adapter.get_store_event_fd())
        ends |= adapter.pop_completed_store_tasks()
    return ends[task]


def store(adapter: L2AdapterInterface, keys: list[ObjectKey], data: list[bytes]) -> Any:
    """Store and wait; the result."""
    return stored(adapter, adapter.submit_store_task(keys, [memory(one) for one in data]))


def lock(adapter: L2AdapterInterface, keys: list[ObjectKey]) -> list[bool]:
    """Look up and lock, and wait."""
    task = adapter.submit_lookup_and_lock_task(keys, {})
    wait(adapter.get_lookup_and_lock_event_fd())
    bits = ask(adapter.get_lookup_and_lock_event_fd(), adapter.query_lookup_and_lock_result, task)
    assert adapter.query_lookup_and_lock_result(task) is None, "a result is given once"
    assert bits.size() == len(keys)
    return [bits.test(i) for i in range(len(keys))]


def load(
    adapter: L2AdapterInterface, keys: list[ObjectKey], objects: list[TensorMemoryObj]
) -> list[bool]:
    """Load and wait; which objects were filled."""
    task = adapter.submit_load_task(keys, objects)
    bits = ask(adapter.get_load_event_fd(), adapter.query_load_result, task)
    assert adapter.query_load_result(task) is None, "a result is given once"
    assert bits.size() == len(keys)
    return [bits.test(i) for i in range(len(keys))]


def key(number: int, salt: str = "", rank: int = 0, group: int = 0) -> ObjectKey:
    return ObjectKey(
        chunk_hash=number.to_bytes(32, "big"),
        model_name="test-model",
        kv_rank=ObjectKey.ComputeKVRank(4, rank, 4, rank),
        object_group_id=group,
        cache_salt=salt,
    )


def payload(number: int) -> bytes:
    """SIZE bytes that no other number has."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=generator)
    return noise.numpy().tobytes()
