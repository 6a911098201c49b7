"""The instances that the tests of this folder share: they take half a minute each to start."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from tiny_llama import VOCABULARY, write_checkpoint
from vllm_server import IN_PROCESS, VLLM

from lmcache_beluga import CheckReport, Pool

CHUNK = 256
TAIL = 40
"""Tokens behind the last whole chunk of a prompt."""


class Serving:
    """Starts instances, which all live in one folder, and ends what still runs."""

    def __init__(self, python: str, folder: Path, pool: Path) -> None:
        self.pool = pool
        self.folder = folder
        self._python = python
        self._models: dict[int, Path] = {}
        self.instances: list[VLLM] = []

    def start(
        self,
        name: str,
        *arguments: str,
        pool: Path | None = None,
        model: int = 0,
        connector: dict[str, Any] | None = IN_PROCESS,
        privileged: bool = True,
        **lmcache: Any,
    ) -> VLLM:
        """An instance that has yet to be waited for; ``model`` is the seed of its weights."""
        if model not in self._models:
            self._models[model] = write_checkpoint(self.folder / f"model-{model}", model)
        file = None
        if connector is IN_PROCESS:
            file = self.folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(configuration(pool or self.pool, **lmcache)))
        instance = VLLM(
            self._python,
            self.folder / f"{name}.log",
            self._models[model],
            *arguments,
            lmcache=file,
            connector=connector,
            cache=self.folder / "cache",
            privileged=privileged,
        )
        self.instances.append(instance)
        return instance

    def close(self) -> None:
        for instance in self.instances:
            instance.stop()


class Pair:
    """Two instances on one pool, and one without LMCache, which tells what they have to answer."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._starts = 0
        self.pool = serving.pool
        self.alone = serving.start("alone", connector=None)
        self.first, self.second = self._start("first"), self._start("second")
        for instance in (self.alone, self.first, self.second):
            instance.wait()

    def _start(self, name: str) -> VLLM:
        self._starts += 1
        return self._serving.start(f"{name}-{self._starts}")

    def restore(self) -> None:
        """Start those again that have ended."""
        if self.first.ended:
            self.first = self._start("first")
        if self.second.ended:
            self.second = self._start("second")
        self.first.wait()
        self.second.wait()


def configuration(pool: Path, **lmcache: Any) -> dict[str, Any]:
    """As in integration/vllm/one-machine.yaml, with a small pool."""
    return {
        "chunk_size": CHUNK,
        "local_cpu": False,
        "max_local_cpu_size": 0.05,
        "storage_plugins": ["beluga"],
        "extra_config": {
            "storage_plugin.beluga.module_path": "lmcache_beluga",
            "storage_plugin.beluga.class_name": "BelugaBackend",
            "beluga.pool": str(pool),
            "beluga.size": "256MiB",
        },
        **lmcache,
    }


def prompt(seed: int, chunks: int = 4) -> list[int]:
    """Random tokens: whole chunks, and a tail that is computed anew each time."""
    return random.Random(seed).choices(range(3, VOCABULARY), k=chunks * CHUNK + TAIL)


def stats(pool: Path) -> dict[str, int]:
    """What the pool counted."""
    with Pool.open(pool) as found:
        return found.stats()


def check(pool: Path) -> CheckReport:
    with Pool.open(pool) as found:
        return found.check()
