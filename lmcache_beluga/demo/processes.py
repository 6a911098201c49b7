"""Worker processes as the demo's parent sees them: orders down, events up, every wait bounded."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lmcache_beluga.demo.environment import child_environment

_WORKER = "lmcache_beluga.demo.worker"
_LOG_TAIL = 4000
_GRACE_S = 10.0


class WorkerFailed(Exception):
    """A worker died, said something unexpected, or took too long; the text ends with its log."""


class WorkerProcess:
    """One worker in its own Python process (started anew, not forked).

    Args:
        title: how messages call it.
        job_file: what it is to do.
        log_file: receives its standard output and error.
        deadline: moment by `time.monotonic` after which every wait fails.
        module: what it runs.
    """

    def __init__(
        self, title: str, job_file: Path, log_file: Path, deadline: float, module: str = _WORKER
    ) -> None:
        self.title = title
        self._log_file = log_file
        self._deadline = deadline
        self._buffer = b""
        self._events, write_end = os.pipe()
        # -P: the installed package, not one in the working directory (a clone of it).
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", module]
        try:
            with log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    [*command, str(job_file), str(write_end)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[write_end],
                    env=child_environment(),
                )
        except BaseException:
            os.close(self._events)
            raise
        finally:
            os.close(write_end)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def order(self, name: str) -> None:
        """Send one order; a dead worker shows at the next `wait`."""
        with contextlib.suppress(BrokenPipeError):
            stdin = self._stdin()
            stdin.write(f"{name}\n".encode())
            stdin.flush()

    def wait(
        self, event: str, progress: Callable[[int], None] = lambda done: None
    ) -> dict[str, Any]:
        """Wait for an event, passing the ``done`` of progress events on.

        Raises:
            WorkerFailed: the worker ended, or the deadline passed, before the event came.
        """
        while True:
            message = json.loads(self._line(event))
            if message["event"] == event:
                return dict(message)
            if message["event"] != "progress":
                raise WorkerFailed(f"{self.title} sent {message['event']!r}, not {event!r}")
            progress(message["done"])

    def log(self) -> str:
        """The end of what it printed."""
        with contextlib.suppress(OSError):
            return self._log_file.read_text(errors="replace").strip()[-_LOG_TAIL:]
        return ""

    def close(self) -> None:
        """End the process: politely, then, if it does not go, by SIGKILL. Idempotent."""
        with contextlib.suppress(OSError):
            self._stdin().close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_events()

    def kill(self) -> None:
        """End the process at once. Idempotent."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._stdin().close()
        self._process.wait()
        self._close_events()

    def _close_events(self) -> None:
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _line(self, event: str) -> bytes:
        while b"\n" not in self._buffer:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([self._events], [], [], left)[0]:
                self._dump_stacks()
                raise WorkerFailed(
                    f"{self.title} took too long (waiting for {event!r}){self._log_tail()}"
                )
            piece = os.read(self._events, 1 << 16)
            if not piece:
                self._process.wait()
                raise WorkerFailed(
                    f"{self.title} ended with status {self._process.returncode} "
                    f"before {event!r}{self._log_tail()}"
                )
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _dump_stacks(self) -> None:
        """Have the worker's log say where it hangs; faulthandler does so on SIGABRT."""
        self._process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)

    def _log_tail(self) -> str:
        text = self.log()
        return f"; its log ends:\n{text}" if text else ""
