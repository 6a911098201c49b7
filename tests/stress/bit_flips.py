"""Somebody who flips bits of a pool while others use it."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from types import TracebackType

from damage import targets
from pool_layout import Layout, layout_of

#: A flip in the superblock's first line means that the pool was formatted anew: all close it.
_SUPERBLOCK = 4096
#: Flips after which to look again where something lies.
_LOOK = 100
_PAUSE_S = 0.004


class BitFlips:
    """Flips single bits of a pool's file, some hundred a second, as long as it is entered.

    Half of them hit metadata that carries something, half any metadata. With ``payload`` every
    other flip hits the chunks' bytes.
    """

    def __init__(self, path: Path, seed: int, payload: bool) -> None:
        self.flips = 0
        self._error: Exception | None = None
        self._path = path
        self._payload = payload
        self._dice = random.Random(f"flips {seed}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> BitFlips:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        with self._path.open("rb") as file:
            layout = layout_of(file.read(_SUPERBLOCK))
        fd = os.open(self._path, os.O_RDWR)
        try:
            while not self._stop.wait(_PAUSE_S):
                if self.flips % _LOOK == 0:
                    places = self._used(layout)
                self._flip(fd, self._choose(layout, places))
        except Exception as error:
            self._error = error
        finally:
            os.close(fd)

    def _used(self, layout: Layout) -> list[list[range]]:
        kinds = targets(self._path, layout)
        used = [kinds[kind] for kind in kinds if kind not in ("superblock", "anywhere")]
        return [[places for places in kind if places] for kind in used]

    def _choose(self, layout: Layout, places: list[list[range]]) -> int:
        if self._payload and self._dice.random() < 0.5:
            size = layout.extents * layout.extent_size
            return layout.metadata_bytes + self._dice.randrange(size)
        if self._dice.random() < 0.5 and (kind := self._dice.choice(places)):
            return self._dice.choice(self._dice.choice(kind))
        return self._dice.randrange(_SUPERBLOCK, layout.metadata_bytes)

    def _flip(self, fd: int, at: int) -> None:
        (old,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([old ^ 1 << self._dice.randrange(8)]), at)
        self.flips += 1
