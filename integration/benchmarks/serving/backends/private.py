"""LMCache's tiers in process that no other instance can reach."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ..engine import EngineSetup, in_process
from ..settings import Settings
from .base import Backend

_GIB = 1 << 30


class LocalCPU(Backend):
    """LMCache's pinned memory."""

    name = "cpu"
    shared = False

    def setup(self, instance: int) -> EngineSetup:
        file = self.lmcache_file(local_cpu=True, max_local_cpu_size=self.settings.pool_bytes / _GIB)
        return EngineSetup(in_process(self.settings), file)


class Dax(Backend):
    """LMCache's DAX backend. Its index is in the process, so instances share nothing."""

    name = "dax"
    shared = False
    _filling: Sequence[subprocess.Popen[bytes]] = ()

    @classmethod
    def emulated(cls, settings: Settings) -> str:
        return "dax: the device is a file on tmpfs"

    def start(self) -> None:
        size = self.settings.pool_bytes + (64 << 20)
        for instance in self.instances:
            with self._file(instance).open("wb") as file:
                file.truncate(size)
        # A device has its memory; a file takes it page by page, which stores would pay for.
        if self.settings.prefault:
            self._filling = [
                subprocess.Popen(["fallocate", "--length", str(size), self._file(instance)])
                for instance in self.instances
            ]

    def wait(self, deadline: float) -> None:
        for process in self._filling:
            status = process.wait(deadline - time.monotonic())
            if status:
                raise OSError(f"no {self.settings.pool_bytes} bytes in {self.settings.memory}")

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
        for process in self._filling:
            process.kill()
            process.wait()
        for instance in self.instances:
            self._file(instance).unlink(missing_ok=True)

    def _file(self, instance: int) -> Path:
        return self.settings.memory / f"serving-{self.folder.name}-{instance}.dax"


class Disk(Backend):
    """LMCache's local disk. Its index is in the process, so instances share nothing."""

    name = "disk"
    shared = False

    @classmethod
    def emulated(cls, settings: Settings) -> str:
        return "" if settings.disk else f"disk: the disk is {settings.memory}"

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
