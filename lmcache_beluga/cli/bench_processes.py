"""Processes of a benchmark that all do the same at once, line by line."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lmcache_beluga.cli.bench_report import BenchError
from lmcache_beluga.signals import held_back


class Crew:
    """Processes that read orders on stdin and answer each with a line."""

    def __init__(self, workers: Sequence[subprocess.Popen[str]]) -> None:
        self._workers = workers

    def ask(self, what: str) -> list[str]:
        """Has all of them do it; a line of each.

        Raises:
            BenchError: one has ended instead.
        """
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(what + "\n")
            worker.stdin.flush()
        return self.answers()

    def answers(self) -> list[str]:
        """A line of each. Raises BenchError when one has ended instead."""
        lines = []
        for worker in self._workers:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line:
                raise BenchError("a process ended too early, or hung: see what it printed")
            lines.append(line)
        return lines


@contextmanager
def crew(module: str, arguments: Sequence[Sequence[str]], patience_s: float) -> Iterator[Crew]:
    """One process of ``python -m module`` for each of ``arguments``, all of which have said a line.

    Whatever has not ended after ``patience_s`` seconds is killed.

    Raises:
        BenchError: one of them failed, and said so on stderr, or was killed.
    """
    command = [sys.executable, "-P", "-m", module]  # not from the working directory
    workers: list[subprocess.Popen[str]] = []

    def kill() -> None:
        for worker in workers:
            worker.kill()

    watchdog = threading.Timer(patience_s, kill)
    watchdog.start()
    try:
        for more in arguments:
            with held_back():
                workers.append(
                    subprocess.Popen(
                        [*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                )
        members = Crew(workers)
        members.answers()
        yield members
        for worker in workers:
            worker.communicate()
            if worker.returncode != 0:
                raise BenchError(f"a process ended with {worker.returncode}")
    finally:
        watchdog.cancel()
        kill()
        for worker in workers:
            worker.wait()
