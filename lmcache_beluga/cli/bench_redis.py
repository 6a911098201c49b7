"""A Redis server to compare with: on a free loopback port, without persistence, stopped after."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from lmcache_beluga.cli.bench_report import BenchError
from lmcache_beluga.free_ports import free_ports

_START_S = 10.0


def redis_missing() -> str | None:
    """None if Redis can be compared with, else what to install."""
    if shutil.which("redis-server") is None:
        return "no redis-server: apt install redis-server"
    if find_spec("redis") is None:
        return "no Python client: pip install redis"
    return None


class RedisServer:
    """A context manager around one ``redis-server`` process, which `wait` waits for.

    Args:
        folder: its working directory and log.
    """

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self._log = folder / "redis.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--save", "", "--appendonly", "no", "--dir", str(folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """End the server; idempotent."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        """Until it answers.

        Raises:
            BenchError: it did not start.
        """
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._say(b"PING").startswith(b"+PONG"):
                    return
            except OSError:
                time.sleep(0.05)
        raise BenchError(f"redis-server did not start:\n{self._log.read_text()[-1000:]}")

    def flush(self) -> None:
        """Drop all keys."""
        self._say(b"FLUSHALL SYNC")

    def _say(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(64)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
