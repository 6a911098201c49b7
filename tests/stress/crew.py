"""The workers of a run, seen from outside: start, kill, stop, and watch them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from .board import OPERATIONS, Board, Field, Phase, board_bytes
from .nursery import Config
from .worker import Orders

#: An operation that takes longer hangs. No bar: a machine under any load must stay below it.
HANG_S = 60.0


class BrokenPromiseError(AssertionError):
    """A worker saw what must not be, crashed, or hangs."""


class Crew:
    """A nursery and its workers, one per seat. Ends them all with the ``with`` block.

    ``options``: keywords of Pool.attach. ``hosts``: how many host ids the seats are spread over.
    ``control_dir``: where each host has a folder for its control block; by default all share one.
    """

    def __init__(
        self,
        path: Path,
        seats: int,
        options: dict[str, int],
        hosts: int = 1,
        control_dir: Path | None = None,
    ) -> None:
        self.seats = seats
        self.hosts = hosts
        self._board_fd = os.memfd_create("stress-board")
        os.ftruncate(self._board_fd, board_bytes(seats))
        self.board = Board(self._board_fd, seats)
        self._reports, report_fd = os.pipe()
        os.set_blocking(self._reports, False)
        base = str(control_dir) if control_dir else ""
        config = Config(str(path), options, seats, hosts, self._board_fd, report_fd, base)
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "stress.nursery", config.encode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._board_fd, report_fd),
            cwd=Path(__file__).parent.parent,
            # One thread only, or the forked workers would inherit the locks of those they lack.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        os.close(report_fd)
        self._answer("ready")
        self.pids: dict[int, int] = {}
        self._starts = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        for pid in self.pids.values():  # one that is stopped could not be waited for
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self._nursery.stdin.close()
        try:
            self._nursery.wait(60)
        finally:
            self._nursery.kill()
            self._nursery.stdout.close()
            os.close(self._board_fd)
            os.close(self._reports)

    # ---- lives

    def start(self, orders: Orders) -> None:
        """Starts a worker on a seat that nobody has, or whose worker was killed."""
        words = self.board.seat(orders.seat)
        words[Field.STOP] = 0
        words[Field.OPERATION] = 0
        words[Field.SINCE] = time.monotonic_ns()
        words[Field.PHASE] = Phase.STARTING
        for held in (Field.VIEWS, Field.RESERVATIONS, Field.PINS):
            words[held] = 0
        self._starts += 1
        self.pids[orders.seat] = int(self._ask(f"start {orders.encode()}"))

    def kill(self, seat: int) -> int:
        """SIGKILL. Returns the pid, which nobody else gets before :meth:`bury`."""
        pid = self.pids.pop(seat)
        os.kill(pid, signal.SIGKILL)
        return pid

    def bury(self, pid: int, may_have_left: bool = False) -> bool:
        """Waits until a killed worker is gone. BrokenPromiseError if it died of anything else.

        ``may_have_left``: it was asked to end before, and may have done so. False if it has.
        """
        status = int(self._ask(f"reap {pid}"))
        if status != -signal.SIGKILL and not (may_have_left and status == 0):
            self.listen()
            raise BrokenPromiseError(f"a worker ended with status {status} before it was killed")
        return status != 0

    def dismiss(self, seats: list[int]) -> None:
        """Asks workers to end, and waits for that."""
        for seat in seats:
            self.board.seat(seat)[Field.STOP] = 1
        for seat in seats:
            while self.board.seat(seat)[Field.PHASE] != Phase.GONE:
                self.watch()
                time.sleep(0.002)
            status = int(self._ask(f"reap {self.pids.pop(seat)}"))
            if status != 0:
                self.listen()
                raise BrokenPromiseError(f"a worker ended with status {status}")

    def stop(self, seat: int) -> None:
        """SIGSTOP. What the worker is doing meanwhile is not timed."""
        os.kill(self.pids[seat], signal.SIGSTOP)

    def resume(self, seat: int) -> None:
        self.board.seat(seat)[Field.PAUSES] += 1
        os.kill(self.pids[seat], signal.SIGCONT)

    def seats_of(self, host: int) -> list[int]:
        return list(range(host, self.seats, self.hosts))

    # ---- watching

    def done(self, seat: int) -> int:
        """Operations that the workers of a seat have finished."""
        return self.board.seat(seat)[Field.DONE]

    def total(self, what: int) -> int:
        """A field or count, summed over all seats."""
        return sum(self.board.seat(seat)[what] for seat in range(self.seats))

    def worst_ms(self) -> dict[str, float]:
        """The longest time of each operation, on any seat."""
        return {
            name: max(self.board.seat(s)[Field.WORST + i] for s in range(self.seats)) / 1e6
            for i, name in enumerate(OPERATIONS)
            if self.total(Field.COUNT + i)
        }

    def listen(self) -> None:
        """Raises BrokenPromiseError with what workers have reported, if anything."""
        with contextlib.suppress(BlockingIOError):
            if text := os.read(self._reports, 65536).decode():
                reports = [json.loads(line) for line in text.splitlines()]
                raise BrokenPromiseError(
                    "\n".join(f"worker {r['seed']}: {r['text']}" for r in reports)
                )

    def watch(self, stopped: frozenset[int] = frozenset()) -> None:
        """Raises BrokenPromiseError if a worker has reported something, or hangs."""
        self.listen()
        now = time.monotonic_ns()
        for seat, pid in self.pids.items():
            words = self.board.seat(seat)
            phase, since, operation = words[Field.PHASE], words[Field.SINCE], words[Field.OPERATION]
            busy = operation or phase in (Phase.STARTING, Phase.ATTACHING)
            if seat not in stopped and busy and (now - since) / 1e9 > HANG_S:
                os.kill(pid, signal.SIGUSR1)  # faulthandler tells where
                time.sleep(0.5)
                raise BrokenPromiseError(
                    f"the worker on seat {seat} has been in {OPERATIONS[operation]} "
                    f"({Phase(phase).name}) for {(now - since) / 1e9:.0f} s"
                )

    # ---- the nursery

    def _ask(self, line: str) -> str:
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(line.encode() + b"\n")
        self._nursery.stdin.flush()
        return self._answer()

    def _answer(self, expected: str | None = None) -> str:
        assert self._nursery.stdout is not None
        ready, _, _ = select.select([self._nursery.stdout], [], [], HANG_S)
        line = self._nursery.stdout.readline().decode().strip() if ready else ""
        if not line or expected not in (None, line):
            raise BrokenPromiseError(f"the nursery answers {line!r}")
        return line
