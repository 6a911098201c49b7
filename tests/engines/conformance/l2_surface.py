"""The L2 adapter of LMCache's multiprocess servers, made by LMCache from its JSON."""

from __future__ import annotations

import argparse
import json
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import L2AdapterInterface, create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd
from surface import DTYPE, SHAPE, SIZE, Chunk

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


class L2Surface:
    def __init__(self, folder: Path, pool: Path, settings: dict[str, Any]) -> None:
        bare = {name.removeprefix("beluga."): value for name, value in settings.items()}
        self.adapter = create(spec(pool, **bare))

    @staticmethod
    def key(chunk: Chunk) -> ObjectKey:
        return ObjectKey(
            chunk_hash=chunk.hash.to_bytes(8, "big"),
            model_name="test-model",
            kv_rank=ObjectKey.ComputeKVRank(1, 0, 1, 0),
            cache_salt=chunk.salt,
        )

    def keys(self, chunks: Sequence[Chunk]) -> list[ObjectKey]:
        return [self.key(chunk) for chunk in chunks]

    def store(self, chunks: Sequence[Chunk], data: Sequence[bytes]) -> bool:
        objects = [memory(payload) for payload in data]
        task = self.adapter.submit_store_task(self.keys(chunks), objects)
        return bool(stored(self.adapter, task).is_successful())

    def lookup(self, chunks: Sequence[Chunk]) -> list[bool]:
        found = self.hold(chunks)
        self.let_go([chunk for chunk, there in zip(chunks, found, strict=True) if there])
        return found

    def hold(self, chunks: Sequence[Chunk]) -> list[bool]:
        adapter = self.adapter
        task = adapter.submit_lookup_and_lock_task(self.keys(chunks), {})
        bits = ask(
            adapter.get_lookup_and_lock_event_fd(), adapter.query_lookup_and_lock_result, task
        )
        assert adapter.query_lookup_and_lock_result(task) is None, "a result is given once"
        return [bits.test(i) for i in range(len(chunks))]

    def let_go(self, chunks: Sequence[Chunk]) -> None:
        self.adapter.submit_unlock(self.keys(chunks))

    def load(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        objects = [memory() for _ in chunks]
        task = self.adapter.submit_load_task(self.keys(chunks), objects)
        bits = ask(self.adapter.get_load_event_fd(), self.adapter.query_load_result, task)
        assert self.adapter.query_load_result(task) is None, "a result is given once"
        return [bytes(o.byte_array) if bits.test(i) else None for i, o in enumerate(objects)]

    def delete(self, chunks: Sequence[Chunk]) -> None:
        self.adapter.delete(self.keys(chunks))

    def held(self) -> int:
        status = self.adapter.report_status()
        return int(status["pins"] + status["views"] + status["writing"] + status["tasks"])

    def close(self) -> None:
        self.adapter.close()
