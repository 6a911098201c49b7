"""The storage plugin of LMCache's in-process engine, in a real engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from engine_harness import Engine, Options
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryFormat
from surface import DTYPE, SHAPE, SIZE, Chunk


class InProcessSurface:
    def __init__(self, folder: Path, pool: Path, settings: dict[str, Any]) -> None:
        self._engine = Engine(folder / "lmcache.yaml", pool, Options(beluga=settings))
        self._backend = self._engine.backend
        self._memory = self._engine.storage.local_cpu_backend

    @staticmethod
    def key(chunk: Chunk) -> CacheEngineKey:
        tags = {"lmcache.tag.user": chunk.salt} if chunk.salt else None
        return CacheEngineKey("test-model", 1, 0, chunk.hash, DTYPE, tags)

    def store(self, chunks: Sequence[Chunk], data: Sequence[bytes]) -> bool:
        objs = []
        for payload in data:
            obj = self._memory.allocate(SHAPE, DTYPE, MemoryFormat.KV_2LTD)
            obj.raw_tensor[:SIZE].copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
            objs.append(obj)
        self._backend.batched_submit_put_task([self.key(chunk) for chunk in chunks], objs)
        for obj in objs:
            obj.ref_count_down()
        return all(self.lookup(chunks))

    def lookup(self, chunks: Sequence[Chunk]) -> list[bool]:
        return [self._backend.contains(self.key(chunk)) for chunk in chunks]

    def hold(self, chunks: Sequence[Chunk]) -> list[bool]:
        return [self._backend.contains(self.key(chunk), pin=True) for chunk in chunks]

    def let_go(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._backend.unpin(self.key(chunk))

    def load(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        loaded: list[bytes | None] = []
        for chunk in chunks:
            (obj,) = self._backend.batched_get_blocking([self.key(chunk)])
            loaded.append(None if obj is None else bytes(obj.byte_array))
            if obj is not None:
                assert (obj.get_shape(), obj.get_dtype()) == (SHAPE, DTYPE)
                obj.ref_count_down()
        return loaded

    def delete(self, chunks: Sequence[Chunk]) -> None:
        self._backend.batched_remove([self.key(chunk) for chunk in chunks])

    def held(self) -> int:
        stats = self._engine.stats
        return stats["pins"] + stats["views"] + stats["writing"]

    def close(self) -> None:
        self._engine.close()
