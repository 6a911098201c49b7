"""A page that workers and conductor share, so that it sees what a worker does without asking.

It lies in anonymous memory, outlives every worker, and is written with plain 8-byte stores: a
worker that is killed leaves at worst an old value.
"""

from __future__ import annotations

import enum
import mmap

#: What a worker does, by the number it shows on the board. 0: between two operations.
OPERATIONS = (
    "idle",
    "put",
    "put_batch",
    "reserve",
    "commit",
    "commit_view",
    "abort",
    "get",
    "get_batch",
    "read_into",
    "read_batch_into",
    "recheck",
    "release",
    "pin",
    "unpin",
    "remove",
    "evict",
    "contains_prefix",
    "touch",
    "walk",
    "clear",
    "attach",
    "close",
)


class Field(enum.IntEnum):
    """The words of one seat. Times are nanoseconds of the monotonic clock."""

    STOP = 0  # the conductor asks the worker to end
    PHASE = 1
    OPERATION = 2
    SINCE = 3  # when the operation or phase began
    DONE = 4  # operations, of all workers of this seat
    VIEWS = 5
    RESERVATIONS = 6
    PINS = 7
    READS = 8  # chunks whose every byte was compared
    LOST = 9  # reads that the pool itself declared void
    REFUSED = 10
    PAUSES = 11  # how often the conductor stopped this worker
    WORST = 16  # one word per operation: its longest time
    COUNT = 48  # one word per operation: how often


class Phase(enum.IntEnum):
    GONE = 0
    STARTING = 1
    ATTACHING = 2
    RUNNING = 3


_WORDS = 80


class Board:
    """The shared page of all seats. ``fd`` is a memory file of :func:`board_bytes` bytes."""

    def __init__(self, fd: int, seats: int) -> None:
        self._words = memoryview(mmap.mmap(fd, board_bytes(seats))).cast("Q")

    def seat(self, seat: int) -> memoryview:
        """The words of one seat, indexed by :class:`Field`."""
        return self._words[seat * _WORDS : (seat + 1) * _WORDS]


def board_bytes(seats: int) -> int:
    return seats * _WORDS * 8
