"""What hosts say to each other in the pool, read from its file."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path
from types import TracebackType

from pool_layout import layout_of

_SUPERBLOCK = 4096
#: In a host's first page: how many requests it has made, and has read of each other host.
_RING_HEAD = 192
_ACKNOWLEDGED = 512
#: A host's claims follow that page, a byte for each extent.
_CLAIMS = 4096
_OWNED = 3

_PATIENCE_S = 30.0


class HostPages:
    """A look at the pages of all hosts of a pool."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._layout = layout_of(self._memory[:_SUPERBLOCK])
        self._owners: dict[int, int] = {}
        #: Extents that one host owned and then another, as far as looks have shown.
        self.moves = 0

    def __enter__(self) -> HostPages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._memory.close()

    def look_at_claims(self) -> None:
        for host in range(self._layout.max_hosts):
            at = self._page(host) + _CLAIMS
            for extent, claim in enumerate(self._memory[at : at + self._layout.extents]):
                if claim == _OWNED:
                    self.moves += self._owners.get(extent, host) != host
                    self._owners[extent] = host

    def await_answers(self) -> None:
        """Until every host, all of which are attached, has acted on what the others ask of it.

        A chunk that is to be removed, or a clear, is in its place until then.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while self._pending():
            assert time.monotonic() < deadline, "a host does not serve the requests of another"
            time.sleep(0.005)

    def _pending(self) -> bool:
        hosts = range(self._layout.max_hosts)
        return any(
            self._word(asks, _RING_HEAD) != self._word(owner, _ACKNOWLEDGED + 8 * asks)
            for asks in hosts
            for owner in hosts
            if asks != owner
        )

    def _word(self, host: int, at: int) -> int:
        word: int = struct.unpack_from("<Q", self._memory, self._page(host) + at)[0]
        return word

    def _page(self, host: int) -> int:
        return self._layout.hosts + host * self._layout.host_stride
