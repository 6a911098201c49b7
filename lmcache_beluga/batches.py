"""Batches of chunks that native threads store, look up and load, while nobody waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from . import _native
from .pool_info import PutResult

#: ``(address, bytes)`` of CPU memory.
Address: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StoreEnd:
    """What became of a batch that was to be stored."""

    task: int
    results: tuple[PutResult, ...]
    """One for each key."""
    trouble: str
    """What went wrong, empty if nothing did."""


@dataclass(frozen=True, slots=True)
class FindEnd:
    """What became of a batch that was looked up, or was to be loaded."""

    hits: bytes
    """One byte for each key: 1 if it was found and pinned, or was loaded."""
    trouble: str
    """What went wrong, empty if nothing did."""


class Batches:
    """A few native threads that work on one pool. Make it with :meth:`Pool.batches`.

    Each ``submit`` returns at once, with the number of a task. When tasks of a kind have ended,
    the event descriptor (eventfd) of that kind becomes readable. A task ends once, and what went
    wrong is in what it ends with: absent keys are misses, what could not be stored was refused.
    Thread-safe.

    Raises PoolIOError when no event descriptors are to be had; a submit raises PoolClosedError,
    ForkedHandleError, and InvalidArgumentError for a key that is none or an empty chunk.
    """

    def __init__(self, pool: _native.Pool) -> None:
        self._native = _native.BatchTasks(pool)
        self.store_fd: int = self._native.store_fd
        self.lookup_fd: int = self._native.lookup_fd
        self.load_fd: int = self._native.load_fd

    @property
    def pending(self) -> int:
        """Tasks that have not ended."""
        return self._native.pending

    def submit_store(
        self,
        keys: Sequence[Any],
        sources: Sequence[Address],
        metas: Sequence[bytes],
        *,
        first_depth: int = 0,
    ) -> int:
        """Store chunks as :meth:`Pool.put_batch` does.

        The memory must stay as it is until the task has ended.
        """
        return self._native.submit_store(keys, sources, metas, first_depth)

    def submit_lookup(self, keys: Sequence[Any]) -> int:
        """Pin every key that is present: to be unpinned once each.

        A lookup of at most 1,024 keys in a coherent pool has ended on return.
        """
        return self._native.submit_lookup(keys)

    def submit_load(
        self, keys: Sequence[Any], buffers: Sequence[Address], metas: Sequence[bytes]
    ) -> int:
        """Copy chunks out, each into its buffer.

        A chunk that was put with another metadata, or is larger than its buffer, is a miss. The
        memory must stay the task's until it has ended.
        """
        return self._native.submit_load(keys, buffers, metas)

    def take_stores(self) -> list[StoreEnd]:
        """The stores that have ended since this was last called."""
        return [
            StoreEnd(task, tuple(map(PutResult, results)), trouble)
            for task, results, trouble in self._native.take_stores()
        ]

    def take_lookup(self, task: int) -> FindEnd | None:
        """How a lookup ended, once; None if it has not, or is not known."""
        end = self._native.take_lookup(task)
        return None if end is None else FindEnd(*end)

    def take_load(self, task: int) -> FindEnd | None:
        """How a load ended, once; None if it has not, or is not known."""
        end = self._native.take_load(task)
        return None if end is None else FindEnd(*end)

    def close(self) -> None:
        """Ends tasks that wait as not done, and waits for those that are being done.

        After it nothing touches the memory of any task. The event descriptors close when this
        object is gone. Idempotent.
        """
        self._native.close()
