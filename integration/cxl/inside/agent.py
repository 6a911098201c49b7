"""Does in a guest what ``two_guests.py`` orders: one JSON object per line, both ways.

An order is ``{"do": NAME, ...}``. After any number of ``{"event": ...}`` comes ``{"answer": ...}``,
or ``{"error": CLASS, "message": ...}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from content import bytes_of, key_of

from lmcache_beluga import Pool


class Agent:
    def __init__(self, port: str) -> None:
        self._port = os.open(port, os.O_RDWR)
        self._pool: Pool | None = None
        self._held: list[Any] = []

    def serve(self) -> None:
        self._say({"event": "ready"})
        buffered = b""
        while True:
            received = os.read(self._port, 65536)
            if not received:
                time.sleep(0.05)  # nobody is connected
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        act: Callable[..., Any] = getattr(self, "do_" + order.pop("do"))
        try:
            self._say({"answer": act(**order)})
        except Exception as error:
            self._say({"error": type(error).__name__, "message": str(error)})

    def _say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data) :]

    @property
    def pool(self) -> Pool:
        assert self._pool is not None, "attach first"
        return self._pool

    # ---- orders

    def do_run(self, argv: list[str], env: dict[str, str] | None = None) -> dict[str, Any]:
        """Runs a command as an operator would."""
        done = subprocess.run(
            argv,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

    def do_attach(self, path: str, **options: Any) -> dict[str, Any]:
        self._pool = Pool.attach(path, **options)
        device = self.pool.info.devices[0]
        return {
            "uuid": self.pool.uuid,
            "host_id": self.pool.host_id,
            "kind": device.kind,
            "visibility": self.pool.info.visibility,
        }

    def do_detach(self) -> None:
        self.pool.close()
        self._pool = None

    def do_store(self, owner: str, first: int, count: int, size: int) -> None:
        """Stores chunks one by one and tells of each: what was told is committed (G2)."""
        for number in range(first, first + count):
            data = bytes_of(owner, number, size)
            begin = time.monotonic()
            result = self.pool.put(key_of(owner, number), data)
            self._tell("store", number, begin, result.name)

    def do_read(self, owner: str, numbers: list[int], size: int) -> dict[str, int]:
        """Reads chunks and compares every byte."""
        return self._read(owner, numbers, size)

    def do_work(
        self, owner: str, first: int, peer: str, peers: list[int], size: int, seconds: float
    ) -> None:
        """Stores chunks of its own and reads the peer's in turn, telling of each."""
        end = time.monotonic() + seconds
        turn = 0
        while time.monotonic() < end:
            self.do_store(owner, first + turn, 1, size)
            number = peers[turn % len(peers)]
            begin = time.monotonic()
            found = self._read(peer, [number], size)
            self._tell("read", number, begin, next(name for name, n in found.items() if n))
            turn += 1

    def do_hold(self, owner: str, numbers: list[int]) -> list[int]:
        """Takes leased views and keeps them. Returns the slots they lie in."""
        views = [self.pool.get(key_of(owner, number)) for number in numbers]
        self._held += [(owner, n, view) for n, view in zip(numbers, views, strict=True) if view]
        return [view.slot for _, _, view in self._held]

    def do_slots(self, owner: str, numbers: list[int]) -> list[int]:
        """Where chunks lie."""
        views = [self.pool.get(key_of(owner, number)) for number in numbers]
        slots = [view.slot for view in views if view]
        for view in filter(None, views):
            view.release()
        return slots

    def do_let_go(self, size: int) -> dict[str, int]:
        """Looks at the views that are held, then releases them."""
        outcome = {"valid": 0, "lost": 0, "wrong": 0}
        for owner, number, view in self._held:
            right = bytes(memoryview(view)) == bytes_of(owner, number, size)
            outcome["lost" if not view.valid() else "valid" if right else "wrong"] += 1
            view.release()
        self._held.clear()
        return outcome

    def do_remove(self, owner: str, numbers: list[int]) -> int:
        return self.pool.remove([key_of(owner, number) for number in numbers])

    def do_present(self, owner: str, numbers: list[int]) -> int:
        return self.pool.contains([key_of(owner, number) for number in numbers]).count(True)

    def do_stats(self) -> dict[str, int]:
        return self.pool.stats()

    def do_check(self) -> dict[str, Any]:
        report = self.pool.check()
        return {"ok": report.ok, "errors": report.errors, **vars(report)}

    def _read(self, owner: str, numbers: list[int], size: int) -> dict[str, int]:
        outcome = {"hits": 0, "misses": 0, "wrong": 0}
        buffer = bytearray(size)
        for number in numbers:
            if self.pool.read_into(key_of(owner, number), buffer) is None:
                outcome["misses"] += 1
            elif buffer == bytes_of(owner, number, size):
                outcome["hits"] += 1
            else:
                outcome["wrong"] += 1
        return outcome

    def _tell(self, what: str, number: int, begin: float, result: str) -> None:
        seconds = time.monotonic() - begin
        self._say({"event": what, "number": number, "seconds": seconds, "result": result})


if __name__ == "__main__":
    Agent(sys.argv[1]).serve()
