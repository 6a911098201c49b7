"""LMCache's own L1 and the shared one, side by side, with the same calls made to both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.distributed.internal_api import L1ManagerListener
from lmcache.v1.distributed.l1_manager import L1Manager

from lmcache_beluga import Pool
from lmcache_beluga.engines.l1 import BelugaL1

LAYOUT = MemoryLayoutDesc([torch.Size([2, 2, 16, 8])], [torch.bfloat16])
NBYTES = 2 * 2 * 16 * 8 * 2
MIB = 1 << 20


def config(read_ttl: int = 300, write_ttl: int = 600) -> L1ManagerConfig:
    memory = L1MemoryManagerConfig(8 * MIB, False, shm_name="")
    return L1ManagerConfig(memory, write_ttl_seconds=write_ttl, read_ttl_seconds=read_ttl)


def key(name: object, salt: str = "") -> ObjectKey:
    return ObjectKey(str(name).encode().ljust(32, b"."), "model", 0, 0, salt)


def keys(names: str) -> list[ObjectKey]:
    return [key(name) for name in names]


class Heard(L1ManagerListener):  # type: ignore[misc]
    """What a listener is told, but for calls about no keys."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[ObjectKey]]] = []

    def _note(self, name: str, told: list[ObjectKey]) -> None:
        if told:
            self.calls.append((name, sorted(told, key=lambda key: key.chunk_hash)))

    def on_l1_keys_reserved_read(self, keys: list[ObjectKey]) -> None:
        self._note("reserved_read", keys)

    def on_l1_keys_read_finished(self, keys: list[ObjectKey]) -> None:
        self._note("read_finished", keys)

    def on_l1_keys_reserved_write(self, keys: list[ObjectKey]) -> None:
        self._note("reserved_write", keys)

    def on_l1_keys_write_finished(self, keys: list[ObjectKey]) -> None:
        self._note("write_finished", keys)

    def on_l1_keys_finish_write_and_reserve_read(self, keys: list[ObjectKey]) -> None:
        self._note("finish_write_and_reserve_read", keys)

    def on_l1_keys_deleted_by_manager(self, keys: list[ObjectKey]) -> None:
        self._note("deleted", keys)

    def on_l1_keys_accessed(self, keys: list[ObjectKey]) -> None:
        self._note("accessed", keys)


def outcome(result: Any) -> Any:
    """What two L1s must agree on: codes, and where there is an object."""
    if not isinstance(result, dict):
        return result
    return {
        key: value if isinstance(value, L1Error) else (value[0], value[1] is not None)
        for key, value in result.items()
    }


class Pair:
    """``call`` makes a call to both and compares what they answer, and what listeners hear."""

    def __init__(self, path: Path, read_ttl: int = 300, write_ttl: int = 600) -> None:
        settings = config(read_ttl, write_ttl)
        pool = Pool.open(path, size=16 * MIB, extent_size=MIB, chunk_hint=NBYTES)
        self.stock = L1Manager(settings)
        self.ours = BelugaL1(settings, pool)
        self.heard = (Heard(), Heard())
        for l1, listener in zip((self.stock, self.ours), self.heard, strict=True):
            l1.register_listener(listener)

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """The outcome of both (see ``outcome``)."""
        results = []
        for l1 in (self.stock, self.ours):
            results.append(getattr(l1, name)(*arguments, **named))
        expected, got = map(outcome, results)
        assert got == expected, f"{name}{arguments} {named}"
        assert self.heard[1].calls == self.heard[0].calls, f"{name}{arguments} {named}"
        for heard in self.heard:
            heard.calls.clear()
        return got

    def close(self) -> None:
        self.stock.close()
        self.ours.close()
