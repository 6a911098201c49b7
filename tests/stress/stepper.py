"""Runs one operation on a pool, instruction by instruction, and kills its process at one of them.

Run as ``python -m stress.stepper``. A line ``OPERATION PATH COUNT`` on stdin forks a process that
attaches and begins the operation. It is killed with SIGKILL after COUNT instructions of the native
module in its main thread, and the answer is ``killed``; or ``finished N`` if there were only N.

The heartbeat of that process beats so rarely that it does nothing of its own meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmcache_beluga.pool import Pool

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long
_TRACEME, _PEEKUSER, _SINGLESTEP = 0, 3, 9
#: Where x86-64's instruction pointer lies in what _PEEKUSER reads.
_RIP = 16 * 8
_WALL = 0x40000000

#: Milliseconds.
_QUIET = {"heartbeat_ms": 15_000, "dead_after_ms": 60_000, "lease_ms": 60_000}

#: Bytes of the chunks that a pool is filled with, and of one that needs another slot size.
SMALL, LARGE = 3000, 13_000

NEW = np.full(SMALL, 251, dtype=np.uint8)
NEW_LARGE = np.full(LARGE, 252, dtype=np.uint8)


def _begin() -> None:
    """Instructions count from here on."""
    signal.raise_signal(signal.SIGSTOP)


def _put(pool: Pool) -> None:
    _begin()
    pool.put(b"new", NEW)


def _put_large(pool: Pool) -> None:
    _begin()
    pool.put(b"new large", NEW_LARGE)


def _write_in_place(pool: Pool) -> None:
    _begin()
    reservation = pool.reserve(SMALL)
    if reservation is not None:
        reservation.array[:] = NEW
        reservation.commit_view(b"new")


def _abort(pool: Pool) -> None:
    _begin()
    reservation = pool.reserve(SMALL)
    if reservation is not None:
        reservation.abort()


def _get(pool: Pool) -> None:
    _begin()
    view = pool.get(b"0")
    if view is not None:
        view.release()


def _pin(pool: Pool) -> None:
    _begin()
    pool.pin_prefix([b"0", b"1"])
    pool.unpin_all()


def _remove(pool: Pool) -> None:
    _begin()
    pool.remove([b"0", b"1"])


def _clear(pool: Pool) -> None:
    _begin()
    pool.clear()


def _evict(pool: Pool) -> None:
    _begin()
    pool.evict(2 * SMALL)


def _close(pool: Pool) -> None:
    pool.pin(b"0")
    pool.reserve(SMALL)
    _begin()
    pool.close()


#: By name. All but ``attach`` are given a pool that is attached already.
OPERATIONS: dict[str, Callable[[Pool], None] | None] = {
    "put": _put,
    "put_large": _put_large,
    "write_in_place": _write_in_place,
    "abort": _abort,
    "get": _get,
    "pin": _pin,
    "remove": _remove,
    "clear": _clear,
    "evict": _evict,
    "close": _close,
    "attach": None,
}


def _live(operation: str, path: str) -> None:
    """The life of a process that is stepped; does not return."""
    status = 1
    try:
        _LIBC.ptrace(_TRACEME, 0, None, None)
        body = OPERATIONS[operation]
        if body is None:
            _begin()
            Pool.attach(path, **_QUIET)
        else:
            body(Pool.attach(path, **_QUIET))
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _start(operation: str, path: str) -> int:
    pid = os.fork()
    if pid == 0:
        _live(operation, path)
    _, status = os.waitpid(pid, _WALL)
    assert os.WIFSTOPPED(status), f"{operation} ended with {status} before it began"
    return pid


def _step(pid: int) -> bool:
    """One instruction. False: the process has ended."""
    _LIBC.ptrace(_SINGLESTEP, pid, None, None)
    _, status = os.waitpid(pid, _WALL)
    if os.WIFSTOPPED(status):
        assert os.WSTOPSIG(status) == signal.SIGTRAP, f"signal {os.WSTOPSIG(status)}"
        return True
    assert status == 0, f"the process ended with {status}"
    return False


def _kill_after(count: int, pid: int) -> str:
    done = 0
    module = _native_module(pid)
    while _step(pid):
        # Python's own instructions are of no interest: they change nothing that others see.
        done += _LIBC.ptrace(_PEEKUSER, pid, _RIP, None) in module
        if done == count:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, _WALL)
            return "killed"
    return f"finished {done}"


def _native_module(pid: int) -> range:
    """The addresses of the native module in a process."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    parts = [line.split(maxsplit=1)[0].split("-") for line in maps if "/_native." in line]
    return range(int(parts[0][0], 16), int(parts[-1][1], 16))


def main() -> None:
    os.write(1, b"ready\n")
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            operation, path, count = line.decode().split(" ")
            answer = _kill_after(int(count), _start(operation, path))
            os.write(1, answer.encode() + b"\n")


if __name__ == "__main__":
    main()
