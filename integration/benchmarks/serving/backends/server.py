"""LMCache's own multiprocess server, with memory of its own as L1."""

from __future__ import annotations

import json
from typing import Any

from ..engine import EngineSetup, through_server
from ..ports import answers, get
from .base import Backend
from .pool import server, server_options


class PrivateL1(Backend):
    """One server for all instances; the one that stored is asked, as with other private tiers."""

    name = "lmcache-mp"
    shared = False

    def start(self) -> None:
        self._port, self._http = next(self.ports), next(self.ports)
        line = [self.settings.python, "-m", "lmcache.cli.main", "server"]
        line += ["--l1-size-gb", str(self.settings.pool_bytes / (1 << 30)), "--no-l1-use-lazy"]
        line += ["--eviction-policy", "LRU", "--eviction-trigger-watermark", "0.99"]
        line += server_options(self, self._port, self._http)
        self.children.append(server(self, "server", line, {}))

    def wait(self, deadline: float) -> None:
        self.children[0].wait_until(lambda: answers(self._http, "/healthcheck"), deadline)

    def setup(self, instance: int) -> EngineSetup:
        return EngineSetup(through_server(self.settings, self._port))

    def progress(self) -> int | None:
        status = _find(json.loads(get(self._http, "/status")[1]), "l1_manager")
        return int(status["memory_used_bytes"])


def _find(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    return next((found for v in value.values() if (found := _find(v, name)) is not None), None)
