"""A process that the benchmark starts, and all that come from it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

_LOG_TAIL = 3000
_GONE_S = 30.0
_TRACKED_S = 10.0
_POLL_S = 0.1


class ChildError(RuntimeError):
    """A process ended, or does not answer; the text has the end of its log."""


class Child:
    """A process in a session of its own, so that what it starts can be found and ended.

    Args:
        name: in messages, and of the log.
        group: what its CPU time counts for: ``vllm``, ``lmcache`` or ``tier``.
        folder: for its log.
        environment: the whole of it.
    """

    def __init__(
        self,
        name: str,
        group: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.group = name, group
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(environment),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def alive(self) -> bool:
        """Whether the process itself still runs."""
        return self._process.poll() is None

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:]

    def wait_until(self, ready: Callable[[], bool], deadline: float) -> Self:
        """Poll ``ready``, for which OSError is "not yet", until ``time.monotonic() == deadline``.

        Raises:
            ChildError: the process ended, or the deadline has passed.
        """
        while time.monotonic() < deadline:
            if not self.alive():
                status = self._process.returncode
                raise ChildError(f"{self.name} ended with status {status}:\n{self.said()}")
            with contextlib.suppress(OSError):
                if ready():
                    return self
            time.sleep(_POLL_S)
        raise ChildError(f"{self.name} does not answer:\n{self.said()}")

    def cpu_s(self) -> float:
        """CPU seconds of all processes of its session so far, ended ones included."""
        total = 0.0
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])  # own and of ended children
        return total

    def resident_bytes(self) -> int:
        """Memory of the process itself."""
        try:
            resident: int = psutil.Process(self.pid).memory_info().rss
        except psutil.Error:
            return 0
        return resident

    def kill(self) -> None:
        """End all of it at once: nothing that happens while it goes down is measured.

        But for Python's resource trackers, which end when the others have, and take along the
        shared memory that these left.
        """
        members = self._members()
        self.strike()
        self._process.wait(_GONE_S)
        _, late = psutil.wait_procs(members, timeout=_TRACKED_S)
        _kill(late)
        psutil.wait_procs(late, timeout=_GONE_S)

    def strike(self) -> None:
        """Begin to kill it; does not wait."""
        _kill(process for process in self._members() if not _is_tracker(process))

    def end(self, seconds: float = 10.0) -> None:
        """Ask it to end, and kill what is left of it then."""
        if self.alive():
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self.kill()

    def _members(self) -> list[psutil.Process]:
        """All processes of its session."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.getsid(process.pid) == self.pid:
                    found.append(process)
        return found


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
