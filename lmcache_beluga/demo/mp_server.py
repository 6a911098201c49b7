"""LMCache's multiprocess server in a process of its own: stock, or with the pool as its L1."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmcache_beluga.demo.environment import child_environment
from lmcache_beluga.free_ports import free_ports

_STOCK = ("lmcache.cli.main", "server")
_OURS = ("lmcache_beluga", "lmcache-server")
_LOG_TAIL = 3000


class ServerError(RuntimeError):
    """A server did not start, or ended too early; the text has the end of its log."""


class MPServer:
    """A server on free ports of the loopback interface, started without waiting for it.

    Args:
        log: file for what it says.
        pool: path of the pool that is its L1; None for LMCache's stock server.
        options: more options of its command line.
        environment: more variables of its environment.
    """

    def __init__(
        self,
        log: Path,
        pool: Path | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self._scheme = "grpc" if "grpc" in options else "tcp"
        self.port, self.http_port = free_ports(2)
        ours = () if pool is None else ("--pool", str(pool))
        ports = ("--port", str(self.port), "--http-port", str(self.http_port))
        local = ("--host", "127.0.0.1", "--http-host", "127.0.0.1")
        module, *command = _STOCK if pool is None else _OURS
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *command, *ours, *local, *ports, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**child_environment(), **(environment or {})},
            )

    @property
    def url(self) -> str:
        """Where engines connect to."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """Where it is asked how it is."""
        return f"http://127.0.0.1:{self.http_port}"

    def wait(self, seconds: float = 90) -> Self:
        """Until it serves. Raises ServerError if it ends instead, or takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, urllib.error.URLError):
                self.http("/healthcheck")
                return self
            time.sleep(0.05)
        state = f"ended with status {self.process.poll()}" if self.process.poll() else "is silent"
        self.stop()
        raise ServerError(f"the server {state}:\n{self.said()}")

    def http(self, path: str, data: Mapping[str, Any] | None = None) -> Any:
        """What its HTTP interface answers to GET, or to POST with ``data``, as JSON."""
        request = urllib.request.Request(
            f"{self.http_url}{path}",
            method="GET" if data is None else "POST",
            data=None if data is None else json.dumps(data).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read())

    def l1(self) -> dict[str, Any]:
        """The status of its L1."""
        found = _find(self.http("/status"), "l1_manager")
        assert isinstance(found, dict)
        return found

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(60)

    def stop(self, seconds: float = 30) -> int:
        """Ask it to end, kill it if it does not; its status. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _find(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    return next((found for v in value.values() if (found := _find(v, name)) is not None), None)
