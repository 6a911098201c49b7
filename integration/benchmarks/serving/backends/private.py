"""LMCache's tiers in process that no other instance can reach."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..engine import EngineSetup, in_process
from .base import Backend

_GIB = 1 << 30


class LocalCPU(Backend):
    """LMCache's pinned memory."""

    name = "cpu"
    shared = False

    def setup(self, instance: int) -> EngineSetup:
        file = self.lmcache_file(
            local_cpu=True, max_local_cpu_size=self.settings.pool_bytes / _GIB
        )
        return EngineSetup(in_process(self.settings), file)


class Dax(Backend):
    """LMCache's DAX backend. Its index is in the process, so instances share nothing."""

    name = "dax"
    shared = False
    emulated = "dax: the device is a file on tmpfs"

    def start(self) -> None:
        for instance in self.instances:
            with self._file(instance).open("wb") as file:
                file.truncate(self.settings.pool_bytes + (64 << 20))

    def setup(self, instance: int) -> EngineSetup:
        extra = {
            "storage_plugin.dax.module_path": "lmcache.v1.storage_backend.plugins.dax_backend",
            "storage_plugin.dax.class_name": "DaxBackend",
            "dax.device_path": str(self._file(instance)),
            "dax.max_dax_size": self.settings.pool_bytes / _GIB,
        }
        file = self.lmcache_file(storage_plugins=["dax"], extra_config=extra)
        return EngineSetup(in_process(self.settings), file)

    def close(self) -> None:
        for instance in self.instances:
            self._file(instance).unlink(missing_ok=True)

    def _file(self, instance: int) -> Path:
        return self.settings.memory / f"serving-{self.folder.name}-{instance}.dax"


class Disk(Backend):
    """LMCache's local disk. Its index is in the process, so instances share nothing."""

    name = "disk"
    shared = False

    def start(self) -> None:
        for instance in self.instances:
            self._folder(instance).mkdir(parents=True)

    def setup(self, instance: int) -> EngineSetup:
        file = self.lmcache_file(
            local_disk=f"file://{self._folder(instance)}/",
            max_local_disk_size=self.settings.pool_bytes / _GIB,
        )
        return EngineSetup(in_process(self.settings), file)

    def progress(self) -> int | None:
        return sum(
            file.stat().st_size
            for instance in self.instances
            for file in self._folder(instance).iterdir()
        )

    def close(self) -> None:
        for instance in self.instances:
            shutil.rmtree(self._folder(instance), ignore_errors=True)

    def _folder(self, instance: int) -> Path:
        where = self.settings.disk or self.settings.memory
        return where / f"serving-{self.folder.name}-{instance}.disk"
