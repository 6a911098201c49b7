"""The write reservations of the shared L1: what this server's requests are about to store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lmcache.v1.distributed.error import L1Error

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.memory_management import MemoryObj


class Staged:
    """An object that a request writes. Readers of its key do not see it."""

    __slots__ = ("depth", "nbytes", "obj", "temporary", "until")

    def __init__(self, obj: MemoryObj, until: float, temporary: bool, depth: int) -> None:
        self.obj = obj
        self.nbytes = obj.get_size()
        self.until = until
        self.temporary = temporary
        self.depth = depth
        """Where in its prompt the chunk stands."""


class WriteReservations:
    """By key and writer: each writer (LMCache's ``tag``) has reservations of its own.

    One whose writer vanished lapses after ``ttl_s``. The next writer of the key gets its buffer;
    if there is none, the slot is free again some time later. (A server that dies leaves a slot that
    other processes of the pool reclaim.)
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._staged: dict[ObjectKey, dict[str, Staged]] = {}
        self.bytes = 0
        """Bytes of all reservations."""

    def __len__(self) -> int:
        return sum(len(writers) for writers in list(self._staged.values()))

    def renew(self, key: ObjectKey, tag: str, temporary: bool) -> tuple[bool, MemoryObj | None]:
        """Whether ``tag`` has a reservation of the key already; its object if that had lapsed, and
        now is the caller's."""
        now = time.monotonic()
        with self._lock:
            staged = self._staged.get(key, {}).get(tag)
            if staged is None:
                return False, None
            if staged.until > now:
                return True, None
            # Who wrote before, if it still does, writes the same bytes: the key is their hash.
            staged.until = now + self._ttl_s
            staged.temporary = temporary
            return True, staged.obj

    def add(self, key: ObjectKey, tag: str, obj: MemoryObj, temporary: bool, depth: int) -> bool:
        """Reserve; False if ``tag`` was faster in another thread."""
        with self._lock:
            writers = self._staged.setdefault(key, {})
            if tag in writers:
                return False
            writers[tag] = Staged(obj, time.monotonic() + self._ttl_s, temporary, depth)
            self.bytes += writers[tag].nbytes
            return True

    def take(self, key: ObjectKey, tag: str) -> tuple[L1Error, Staged | None]:
        """End the reservation of a writer that is done. KEY_NOT_EXIST: there is none;
        KEY_IN_WRONG_STATE: it had lapsed."""
        with self._lock:
            staged = self._staged.get(key, {}).get(tag)
            if staged is None:
                return L1Error.KEY_NOT_EXIST, None
            if staged.until <= time.monotonic():
                return L1Error.KEY_IN_WRONG_STATE, None
            self._drop(key, tag)
            return L1Error.SUCCESS, staged

    def reclaim(
        self, keys: Iterable[ObjectKey] | None = None, force: bool = False, overdue_s: float = 0.0
    ) -> dict[ObjectKey, list[MemoryObj]]:
        """The objects of reservations that have lapsed (``overdue_s`` ago), which end here; with
        ``force``, of all. Of all keys if none are named."""
        now = time.monotonic() - overdue_s
        found: dict[ObjectKey, list[MemoryObj]] = {}
        with self._lock:
            for key in list(self._staged) if keys is None else keys:
                for tag, staged in list(self._staged.get(key, {}).items()):
                    if force or staged.until <= now:
                        self._drop(key, tag)
                        found.setdefault(key, []).append(staged.obj)
        return found

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._staged

    def live(self) -> int:
        """How many have not lapsed."""
        now = time.monotonic()
        with self._lock:
            return sum(s.until > now for w in self._staged.values() for s in w.values())

    def close(self) -> Sequence[MemoryObj]:
        """All objects; no reservation is left."""
        return [obj for objs in self.reclaim(force=True).values() for obj in objs]

    def _drop(self, key: ObjectKey, tag: str) -> None:
        writers = self._staged[key]
        self.bytes -= writers.pop(tag).nbytes
        if not writers:
            del self._staged[key]
