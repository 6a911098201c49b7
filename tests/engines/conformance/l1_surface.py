"""The pool as the L1 of LMCache's multiprocess server, called as its storage manager calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from l1_pair import config
from l2_surface import L2Surface
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.error import L1Error
from surface import DTYPE, SHAPE, Chunk

from lmcache_beluga import Pool
from lmcache_beluga.config import Settings
from lmcache_beluga.engines.l1 import BelugaL1

LAYOUT = MemoryLayoutDesc([torch.Size(SHAPE)], [DTYPE])
WRITER = "a request"


class L1Surface:
    def __init__(self, folder: Path, pool: Path, settings: dict[str, Any]) -> None:
        bare = {name.removeprefix("beluga."): value for name, value in settings.items()}
        names = {"pool": str(pool), "size": "64MiB", "extent_size": "4MiB", **bare}
        chosen = Settings.from_names(names, "the test")
        self._pool = Pool.open(**chosen.pool_arguments())
        self.l1 = BelugaL1(config(), self._pool, verify=chosen.verify)

    def keys(self, chunks: Sequence[Chunk]) -> list[ObjectKey]:
        return [L2Surface.key(chunk) for chunk in chunks]

    def store(self, chunks: Sequence[Chunk], data: Sequence[bytes]) -> bool:
        keys = self.keys(chunks)
        reserved = self.l1.reserve_write(keys, [False] * len(keys), LAYOUT, WRITER)
        written = []
        for key, content in zip(keys, data, strict=True):
            error, obj = reserved[key]
            if error is L1Error.SUCCESS:
                obj.raw_tensor.view(torch.uint8)[: len(content)].copy_(
                    torch.frombuffer(bytearray(content), dtype=torch.uint8)
                )
                written.append(key)
        results = self.l1.finish_write(written, WRITER)
        # What is there already needs not be stored: LMCache calls that KEY_NOT_WRITABLE.
        there = {
            key
            for key in keys
            if reserved[key][0] is L1Error.KEY_NOT_WRITABLE or results.get(key) is L1Error.SUCCESS
        }
        return len(there) == len(set(keys))

    def lookup(self, chunks: Sequence[Chunk]) -> list[bool]:
        found = self.hold(chunks)
        self.let_go([chunk for chunk, there in zip(chunks, found, strict=True) if there])
        return found

    def hold(self, chunks: Sequence[Chunk]) -> list[bool]:
        keys = self.keys(chunks)
        found = self.l1.reserve_read(keys)
        return [found[key][0] is L1Error.SUCCESS for key in keys]

    def let_go(self, chunks: Sequence[Chunk]) -> None:
        self.l1.finish_read(self.keys(chunks))

    def load(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        keys = self.keys(chunks)
        found = self.l1.reserve_read(keys)
        loaded = [
            bytes(found[key][1].byte_array) if found[key][0] is L1Error.SUCCESS else None
            for key in keys
        ]
        results = self.l1.finish_read([key for key in keys if found[key][0] is L1Error.SUCCESS])
        # A lock whose lease was lost cannot be given back in order: the load has failed.
        return [
            content if results.get(key) is L1Error.SUCCESS else None
            for key, content in zip(keys, loaded, strict=True)
        ]

    def delete(self, chunks: Sequence[Chunk]) -> None:
        self.l1.delete(self.keys(chunks))

    def held(self) -> int:
        status = self.l1.report_status()
        stats = self._pool.stats()
        return int(status["read_locked_count"] + stats["pins"] + stats["writing"])

    def close(self) -> None:
        self.l1.close()
