"""The L2 adapter of LMCache's multiprocess servers, made by LMCache from its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2_harness import create, load, lock, memory, spec, store
from lmcache.v1.distributed.api import ObjectKey
from surface import Chunk


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
        return bool(store(self.adapter, self.keys(chunks), list(data)).is_successful())

    def lookup(self, chunks: Sequence[Chunk]) -> list[bool]:
        found = self.hold(chunks)
        self.let_go([chunk for chunk, there in zip(chunks, found, strict=True) if there])
        return found

    def hold(self, chunks: Sequence[Chunk]) -> list[bool]:
        return lock(self.adapter, self.keys(chunks))

    def let_go(self, chunks: Sequence[Chunk]) -> None:
        self.adapter.submit_unlock(self.keys(chunks))

    def load(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        objects = [memory() for _ in chunks]
        loaded = load(self.adapter, self.keys(chunks), objects)
        return [bytes(o.byte_array) if ok else None for o, ok in zip(objects, loaded, strict=True)]

    def delete(self, chunks: Sequence[Chunk]) -> None:
        self.adapter.delete(self.keys(chunks))

    def held(self) -> int:
        status = self.adapter.report_status()
        return int(status["pins"] + status["views"] + status["writing"] + status["tasks"])

    def close(self) -> None:
        self.adapter.close()
