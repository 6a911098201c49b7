"""Starts workers in a few milliseconds: it has imported all, attached nothing, and forks.

Run as ``python -m stress.nursery CONFIG`` with CONFIG in JSON. Lines on stdin: ``start ORDERS``
answers the new worker's pid, ``reap PID`` waits for its end and answers its exit status (negative:
the signal). When stdin ends, all workers are killed and the nursery ends.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .board import Board, Field, Phase
from .content import Keyspace
from .worker import Orders, WrongError, work

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

#: Exit statuses of a worker that found something.
WRONG, RAISED = 3, 4


@dataclass(frozen=True)
class Config:
    """What all workers of a run share."""

    path: str
    #: Keywords of Pool.attach.
    options: dict[str, Any]
    seats: int
    hosts: int
    board_fd: int
    #: A pipe on which a worker says what it found, in one line.
    report_fd: int
    #: Where each host has a folder of its own for its control block; empty: all share one.
    control_dir: str = ""

    def encode(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def decode(cls, text: str) -> Config:
        return cls(**json.loads(text))


def control_dir(base: str, host: int) -> str:
    """A host's own /dev/shm, so to say."""
    return f"{base}/host{host}"


def main() -> None:
    config = Config.decode(sys.argv[1])
    keyspace = Keyspace(config.seats)
    board = Board(config.board_fd, config.seats)
    children: set[int] = set()
    print("ready", flush=True)
    # Not through sys.stdin, whose buffer a worker would inherit.
    for line in _lines(0):
        verb, _, rest = line.partition(" ")
        if verb == "start":
            pid = os.fork()
            if pid == 0:
                _live(config, keyspace, board, Orders.decode(rest))
            children.add(pid)
            _answer(pid)
        else:
            pid, status = os.waitpid(int(rest), 0)
            children.discard(pid)
            _answer(os.waitstatus_to_exitcode(status))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _live(config: Config, keyspace: Keyspace, board: Board, orders: Orders) -> None:
    """The life of a worker; does not return."""
    status = RAISED
    try:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.register(signal.SIGUSR1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        host = orders.seat % config.hosts
        options = {**config.options, "host_id": host}
        if config.control_dir:
            options["control_dir"] = control_dir(config.control_dir, host)
        work(config.path, options, keyspace, orders, board)
        status = 0
    except WrongError as error:
        status = WRONG
        _report(config, orders, str(error))
    except BaseException:
        _report(config, orders, traceback.format_exc())
    board.seat(orders.seat)[Field.PHASE] = Phase.GONE
    os._exit(status)


def _report(config: Config, orders: Orders, text: str) -> None:
    line: dict[str, Any] = {"seat": orders.seat, "seed": orders.seed, "text": text[-3000:]}
    os.write(config.report_fd, (json.dumps(line) + "\n").encode())


def _answer(number: int) -> None:
    os.write(1, b"%d\n" % number)


def _lines(fd: int) -> Iterator[str]:
    rest = b""
    while data := os.read(fd, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


if __name__ == "__main__":
    main()
