"""How long a run has gone on, and how long it may."""

from __future__ import annotations

import time


class Clock:
    """Starts at once; ``limit_s`` None: no limit."""

    def __init__(self, limit_s: float | None = None) -> None:
        self._start = time.monotonic()
        self._limit_s = limit_s

    @property
    def elapsed_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    @property
    def left_s(self) -> float:
        """Until the limit; negative when it has passed."""
        return float("inf") if self._limit_s is None else self._limit_s - self.elapsed_s

    def within(self, limit_s: float | None) -> Clock:
        """A clock that starts now, with the smaller of both limits."""
        limits = [limit for limit in (limit_s, self.left_s) if limit is not None]
        return Clock(min(limits))
