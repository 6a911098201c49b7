"""This project's pool: in process, and as the L1 of LMCache's servers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..child import Child
from ..engine import EngineSetup, in_process, through_server
from ..ports import HOST, answers
from ..settings import Settings, child_environment
from .base import Backend, Moved

#: The files that users start from.
LAUNCHERS = Path(__file__).resolve().parents[3] / "vllm"


class PoolBackend(Backend):
    """What both have in common: a pool, and its counters."""

    _attached: Any = None

    @classmethod
    def emulated(cls, settings: Settings) -> str:
        return "beluga, beluga-mp: the pool lies on tmpfs, in local memory instead of CXL's"

    @property
    def path(self) -> Path:
        """Of the pool."""
        return self.settings.memory / f"serving-{self.folder.name}.pool"

    def progress(self) -> int | None:
        return int(self._stats()["put_bytes"])

    def moved(self) -> Moved | None:
        stats = self._stats()
        return Moved(stats["put_bytes"], stats["get_bytes"], "the pool's counters")

    def close(self) -> None:
        if self._attached is not None:
            self._attached.close()
        super().close()
        if self.path.exists():
            self._clean_up()
        self.path.unlink(missing_ok=True)

    def _stats(self) -> dict[str, int]:
        from lmcache_beluga import Pool

        if self._attached is None:
            self._attached = Pool.attach(self.path)
        stats: dict[str, int] = self._attached.stats()
        return stats

    def _clean_up(self) -> None:
        """What killed engines left of the pool outside its file goes with the next to attach."""
        from lmcache_beluga import BelugaError, Pool

        try:
            Pool.attach(self.path).close()
        except BelugaError as error:
            print(f"{self.name}: {error}")


class InProcess(PoolBackend):
    """BelugaBackend in LMCache's engines."""

    name = "beluga"

    def setup(self, instance: int) -> EngineSetup:
        file = yaml.safe_load((LAUNCHERS / "one-machine.yaml").read_text())
        own = self.lmcache_file()
        del own["max_local_cpu_size"]
        extra = file["extra_config"] | {
            "beluga.pool": str(self.path),
            "beluga.size": self.settings.pool_bytes,
            "beluga.prefault": self.settings.prefault,
        }
        return EngineSetup(
            in_process(self.settings, mended=False), file | own | {"extra_config": extra}
        )


class ThroughServers(PoolBackend):
    """A ``beluga lmcache-server`` for each instance, all on one pool."""

    name = "beluga-mp"

    @property
    def path(self) -> Path:
        """So named, engines map the pool where there is no GPU, instead of being sent chunks."""
        return self.settings.memory / f"lmcache_l1_pool_serving-{self.folder.name}"

    def start(self) -> None:
        self._ports = {
            instance: (next(self.ports), next(self.ports)) for instance in self.instances
        }
        for instance, (port, http) in self._ports.items():
            line = [self.settings.python, "-m", "lmcache_beluga", "lmcache-server"]
            line += ["--pool", str(self.path), "--pool-size", str(self.settings.pool_bytes)]
            line += server_options(self, port, http)
            environment = {"BELUGA_PREFAULT": str(self.settings.prefault).lower()}
            self.children.append(server(self, f"server-{instance}", line, environment))

    def wait(self, deadline: float) -> None:
        for child, (_, http) in zip(self.children, self._ports.values(), strict=True):
            child.wait_until(partial(answers, http, "/healthcheck"), deadline)

    def setup(self, instance: int) -> EngineSetup:
        port = self._ports[instance][0]
        return EngineSetup(through_server(self.settings, port, "lmcache_beluga.engines.vllm_mp"))


def server_options(backend: Backend, port: int, http_port: int) -> list[str]:
    """Of LMCache's servers, with whatever L1."""
    return [
        *("--host", HOST, "--port", str(port), "--http-host", HOST, "--http-port", str(http_port)),
        *("--chunk-size", str(backend.settings.chunk)),
        *("--hash-algorithm", backend.settings.server_hash_algorithm),
        *("--supported-transfer-mode", "auto"),
    ]


def server(backend: Backend, name: str, line: list[str], environment: dict[str, str]) -> Child:
    """Such a server; it sees the GPUs of all instances, which it copies to."""
    gpus = dict.fromkeys(gpu for entry in backend.settings.gpus for gpu in entry.split(",") if gpu)
    if gpus:
        environment = environment | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return Child(name, "lmcache", line, backend.folder, child_environment(**environment))
