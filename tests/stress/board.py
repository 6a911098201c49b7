"""A page that workers and conductor share, so that it sees what a worker does without asking.

It lies in anonymous memory, outlives every worker, and is written with plain 8-byte stores: a
worker that is killed leaves at worst an old value.
"""

from __future__ import annotations

import enum
import mmap

import numpy as np
import numpy.typing as npt

from .latency import BUCKETS, Measure, Window, window_word

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
    WINDOW = 12  # see latency.window_word()
    WORST = 16  # one word per operation: its longest time
    COUNT = 48  # one word per operation: how often


class Phase(enum.IntEnum):
    GONE = 0
    STARTING = 1
    ATTACHING = 2
    RUNNING = 3


_WORDS = 80
#: Of one seat. Nothing is recorded outside of windows.
_HISTOGRAMS = (len(Window) - 1, len(Measure), len(OPERATIONS), BUCKETS)
_SEAT_WORDS = _WORDS + int(np.prod(_HISTOGRAMS))


class Board:
    """The shared page of all seats. ``fd`` is a memory file of :func:`board_bytes` bytes."""

    def __init__(self, fd: int, seats: int) -> None:
        memory = mmap.mmap(fd, board_bytes(seats))
        self._words = memoryview(memory).cast("Q")
        self._histograms = np.frombuffer(memory, dtype=np.uint64).reshape(seats, _SEAT_WORDS)
        self._histograms = self._histograms[:, _WORDS:].reshape(seats, *_HISTOGRAMS)
        self._seats = seats
        self._windows = 0

    def seat(self, seat: int) -> memoryview:
        """The words of one seat, indexed by :class:`Field`."""
        return self._words[seat * _SEAT_WORDS : seat * _SEAT_WORDS + _WORDS]

    def histograms(self, seat: int) -> npt.NDArray[np.uint64]:
        """A seat's latencies, by window (from USUAL on), measure, operation and bucket."""
        mine: npt.NDArray[np.uint64] = self._histograms[seat]
        return mine

    def latencies(self) -> npt.NDArray[np.uint64]:
        """Those of all seats together, as they are now."""
        total: npt.NDArray[np.uint64] = self._histograms.sum(axis=0)
        return total

    def open_window(self, kind: Window) -> None:
        """What workers do from now on belongs to this window."""
        self._windows += 1
        for seat in range(self._seats):
            self.seat(seat)[Field.WINDOW] = window_word(self._windows, kind)


def board_bytes(seats: int) -> int:
    return seats * _SEAT_WORDS * 8
