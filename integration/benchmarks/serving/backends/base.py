"""What a backend is: processes besides vLLM, and what vLLM is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..child import Child
from ..engine import EngineSetup
from ..settings import Settings


@dataclass(frozen=True)
class Moved:
    """Bytes that a tier got and gave so far, and who counted them. None: nobody counts them."""

    stored: int | None
    loaded: int | None
    counted_by: str


class Backend:
    """One way to deploy a KV cache for vLLM instances; this one has none.

    Args:
        settings: of the run.
        folder: for logs; made anew for each deployment.
        ports: free ones.
        instances: which will be started.
    """

    name: ClassVar[str]
    #: What one instance stores, the others find. Otherwise who stored is asked.
    shared: ClassVar[bool] = True
    #: A tier at all: False recomputes everything.
    caches: ClassVar[bool] = True

    def __init__(
        self, settings: Settings, folder: Path, ports: Iterator[int], instances: tuple[int, ...]
    ) -> None:
        self.settings, self.folder, self.ports = settings, folder, ports
        self.instances = instances
        self.children: list[Child] = []

    @classmethod
    def missing(cls, settings: Settings) -> str:
        """What this machine lacks to run it; empty: nothing."""
        return ""

    @classmethod
    def emulated(cls, settings: Settings) -> str:
        """What stands in for hardware of a real deployment; empty: nothing."""
        return ""

    def start(self) -> None:
        """Start its processes, and take what vLLM must find, without waiting for it."""

    def wait(self, deadline: float) -> None:
        """Until its processes serve; raises ChildError."""

    def setup(self, instance: int) -> EngineSetup:
        """For vLLM's command line."""
        return EngineSetup()

    def progress(self) -> int | None:
        """A number that changes while it stores. None: it has stored when vLLM has answered."""
        return None

    def moved(self) -> Moved | None:
        """None: it does not count; tokens tell then."""
        return None

    def close(self) -> None:
        """End its processes and remove its files; vLLM has ended before."""
        for child in self.children:
            child.end()

    def lmcache_file(self, **more: object) -> dict[str, object]:
        """What LMCache's files in process have in common."""
        return {
            "chunk_size": self.settings.chunk,
            "local_cpu": False,
            "max_local_cpu_size": self.settings.staging_bytes / (1 << 30),
            "pre_caching_hash_algorithm": self.settings.hash_algorithm,
            # A slow tier is to be measured, not given up.
            "blocking_timeout_secs": 120,
            **more,
        }


class Recompute(Backend):
    """vLLM alone."""

    name = "none"
    caches = False
    shared = False  # one instance computes as well as another
