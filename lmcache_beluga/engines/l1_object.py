"""LMCache's MemoryObj for the shared L1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmcache_beluga.engines.memory_obj import PoolMemoryObj
from lmcache_beluga.reservation import Reservation

if TYPE_CHECKING:
    from lmcache_beluga.engines.layout import Layout
    from lmcache_beluga.engines.memory_obj import Hold


class L1Object(PoolMemoryObj):
    """A leased chunk, or a slot to write to. It ends when the L1 says so: nothing in an LMCache
    server counts references to objects of its L1.

    Also knows where in the pool's file its bytes are: an engine that copies by itself (LMCache's
    ``engine_driven`` mode) maps the file and is told.
    """

    __slots__ = ("_base",)

    def __init__(self, hold: Hold, layout: Layout, base: int, owner: int) -> None:
        """``base``: the address at which the pool's file begins in this process. ``owner``:
        LMCache's number of the L1."""
        super().__init__(hold, layout, end, None)
        self._base = base
        self.set_l1_manager(owner)

    @property
    def shm_offset(self) -> int:
        """Offset of the first byte in the pool's file."""
        return int(self.meta.address) - self._base


def end(hold: Hold) -> None:
    """Give the lease or the slot back."""
    if isinstance(hold, Reservation):
        hold.abort()
    else:
        hold.release()
