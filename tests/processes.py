"""Other processes on a pool, driven line by line: tests can stop and kill them at known points."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PRELUDE = """
import os, signal, sys, time
import pool_modes
from lmcache_beluga import Pool, PutResult

pool_modes.inherit()

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()

arguments = sys.argv[1:]
"""


class Child:
    """A Python process that runs ``body``.

    The body finds ``Pool``, ``say(*words)`` (a line to the test), ``hear()`` (a line from it) and
    ``arguments`` (as strings). What it raises ends it with status 1, and its traceback is told when
    the test waits for it. ``uid``: whom it becomes first. ``inside``: a command that runs it.
    """

    def __init__(
        self, body: str, *arguments: object, uid: int | None = None, inside: Sequence[str] = ()
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        drop = "" if uid is None else f"os.setgid({uid}); os.setuid({uid})\n"
        script = _PRELUDE + drop + textwrap.dedent(body)
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self._heard = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self, timeout: float = 60) -> str:
        """The next line that the child says. AssertionError if it ends or is silent too long."""
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._process.stdout], [], [], timeout)
            assert ready, "the child says nothing"
            more = os.read(self._process.stdout.fileno(), 65536)
            assert more, f"the child ended:\n{self._rest()}"
            self._heard += more
        line, self._heard = self._heard.split(b"\n", 1)
        return line.decode()

    def say(self, *words: object) -> None:
        """A line to the child."""
        assert self._process.stdin is not None
        self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self._process.stdin.flush()

    def expect(self, line: str) -> None:
        heard = self.hear()
        assert heard == line, f"the child says {heard!r}, not {line!r}"

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        self._process.kill()
        self._process.wait(60)

    def stop(self) -> None:
        """SIGSTOP, and waits until every thread of the process has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def finish(self, timeout: float = 60) -> None:
        """Waits for an orderly end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        status = self._process.wait(timeout)
        assert status == 0, f"the child ended with status {status}:\n{self._rest()}"

    def discard(self) -> None:
        """Ends it whatever it does, and closes its pipes."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _rest(self) -> str:
        self._process.wait(60)
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace")


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Returns once the condition holds; AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.01)
