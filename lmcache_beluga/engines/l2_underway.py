"""What has to be remembered of a task from its submission until somebody asks how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 4096
"""More tasks than LMCache has under way; those beyond were abandoned."""


class Underway(Generic[T]):
    """Tasks of one kind by number, each with what must be kept until it has ended. Thread-safe."""

    def __init__(self, ended: Callable[[int], object | None]) -> None:
        """``ended``: takes the outcome of a task that nobody asks for; None if it is not over."""
        self._lock = threading.Lock()
        self._tasks: dict[int, T] = {}
        self._ended = ended

    def begin(self, submit: Callable[[], int], kept: T) -> int:
        """Submit a task and keep something for it; nobody sees its end before that is kept."""
        with self._lock:
            task = submit()
            self._tasks[task] = kept
            if len(self._tasks) > MOST:
                self._forget_abandoned()
            return task

    def end(self, task: int) -> T | None:
        """Give back what was kept for a task; None if it is not known (any more)."""
        with self._lock:
            return self._tasks.pop(task, None)

    def _forget_abandoned(self) -> None:
        # The memory of a task that is not over is still in use.
        for task in list(self._tasks)[: MOST // 4]:
            if self._ended(task) is not None:
                del self._tasks[task]
