"""The read locks of the shared L1: which chunks this server's requests hold, and how often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lmcache.v1.distributed.error import L1Error

from lmcache_beluga.engines.trouble import TroubleLog, logger

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.memory_management import MemoryObj

    from lmcache_beluga._native import View as NativeView
    from lmcache_beluga.engines.l1_memory import L1Memory

SWEEP_S = 1.0
SUCCESS = L1Error.SUCCESS
"""Under a name of its own: an enum's member costs more to look up than a key."""


class Held:
    """An object that requests of this server have locked for reading."""

    # Of the class, and so for nothing: there are thousands a second that never differ from it.
    temporary = False
    """Goes when its last lock goes. It is not in the pool: nobody else finds it."""
    gone = False
    """It is in the table no more."""
    lost = False
    """Its lease ended too early: who reads it may read another chunk's bytes."""

    def __init__(self, obj: MemoryObj, count: int, until: float) -> None:
        self.obj = obj
        self.count = count
        self.until = until
        """When the locks of requests that never came back lapse, in time.monotonic()."""


class ReadLocks:
    """Locks are counted per key, as LMCache has no names for them. The first one leases the chunk,
    the last one gives the lease back.

    LMCache asks for a verdict on what was read nowhere but before a transfer (``peek``) and at its
    end (``give_back``); a lease that was lost is noticed there.
    """

    def __init__(
        self,
        lease: Callable[[Sequence[ObjectKey]], list[NativeView | None]],
        memory: L1Memory,
        ttl_s: float,
        check_hits: bool,
        trouble: TroubleLog,
    ) -> None:
        """``lease``: views of those keys that the pool has. ``ttl_s``: after which locks that
        nobody gives back lapse. ``check_hits``: look whether a lease still lasts before another
        request shares it."""
        self._lease = lease
        self._memory = memory
        self._ttl_s = ttl_s
        self._check_hits = check_hits
        self._trouble = trouble
        self._lock = threading.Lock()
        self._held: dict[ObjectKey, Held] = {}
        self._forgotten: list[Held] = []
        self._swept = 0.0
        self.lost = 0
        """Leases that ended while somebody held a read lock."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Bytes of all objects held."""
        return sum(held.obj.get_size() for held in list(self._held.values()))

    def take(self, keys: Sequence[ObjectKey], locks: int) -> list[MemoryObj | None]:
        """Lock each key that is there ``locks`` times; its object, None where there is none."""
        now = time.monotonic()
        until = now + self._ttl_s
        found: list[MemoryObj | None] = [None] * len(keys)
        absent: Sequence[int] = range(len(keys))
        with self._lock:
            there = list(map(self._held.get, keys))
            if any(there):
                absent = []
                for index, held in enumerate(there):
                    if held is None or not self._lasts(held, now):
                        absent.append(index)
                    else:
                        held.count += locks
                        held.until = until
                        found[index] = held.obj
        if not absent:
            return found
        wanted = [keys[index] for index in absent] if len(absent) < len(keys) else keys
        objs = self._memory.reading(wanted, self._lease(wanted))
        spare: list[MemoryObj] = []
        with self._lock:
            enter = self._held.setdefault
            for index, key, obj in zip(absent, wanted, objs, strict=True):
                if obj is None:
                    continue
                mine = Held(obj, locks, until)
                held = enter(key, mine)
                if held is mine:
                    found[index] = obj
                else:
                    found[index] = self._join(key, held, mine, now, spare)
        self._memory.release_all(spare)
        return found

    def _join(
        self, key: ObjectKey, held: Held, mine: Held, now: float, spare: list[MemoryObj]
    ) -> MemoryObj:
        """Another thread was faster, or the lease that was there is over."""
        if self._lasts(held, now):
            held.count += mine.count
            held.until = mine.until
            spare.append(mine.obj)
            return held.obj
        self._leave(key, held)
        spare.append(held.obj)
        if held.until > now:
            mine.count += held.count  # of readers that go on, and will be told
        self._held[key] = mine
        return mine.obj

    def _lasts(self, held: Held, now: float) -> bool:
        if held.until <= now and not held.temporary:
            return False
        return not self._check_hits or self._intact(held)

    def adopt(self, key: ObjectKey, obj: MemoryObj, locks: int, temporary: bool) -> MemoryObj:
        """Hold an object that was just written; the object that the key's readers share."""
        now = time.monotonic()
        with self._lock:
            held = self._held.get(key)
            if held is None:
                self._held[key] = held = Held(obj, locks, now + self._ttl_s)
                held.temporary = temporary
                return obj
            held.count += locks
            held.until = now + self._ttl_s
        self._memory.release(obj)
        return held.obj

    def peek(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, tuple[L1Error, MemoryObj | None]]:
        """The objects of keys that are locked. KEY_NOT_READABLE where the lease was lost."""
        with self._lock:
            held = [self._held.get(key) for key in keys]
        now = time.monotonic()
        found: dict[ObjectKey, tuple[L1Error, MemoryObj | None]] = {}
        for key, one in zip(keys, held, strict=True):
            if one is None:
                found[key] = (L1Error.KEY_NOT_EXIST, None)
            elif one.count <= 0 or one.until <= now or not self._intact(one):
                found[key] = (L1Error.KEY_NOT_READABLE, None)
            else:
                found[key] = (L1Error.SUCCESS, one.obj)
        return found

    def give_back(
        self, keys: Sequence[ObjectKey], locks: int
    ) -> tuple[dict[ObjectKey, L1Error], list[tuple[ObjectKey, MemoryObj]]]:
        """Take ``locks`` locks off each key: what became of it, and temporaries that are gone.

        KEY_IN_WRONG_STATE where the lease was lost: what was read may be wrong.
        """
        results: dict[ObjectKey, L1Error] = dict.fromkeys(keys, SUCCESS)
        unlocked: list[ObjectKey] = []
        read: list[Held] = []
        over: list[MemoryObj] = []
        gone: list[tuple[ObjectKey, MemoryObj]] = []
        now = time.monotonic()
        with self._lock:
            get = self._held.get
            for key in keys:
                held = get(key)
                if held is None:
                    results[key] = L1Error.KEY_NOT_EXIST
                elif held.count <= 0 or held.until <= now:
                    results[key] = L1Error.KEY_IN_WRONG_STATE
                else:
                    unlocked.append(key)
                    read.append(held)
                    held.count -= locks
                    if held.count <= 0:
                        self._leave(key, held)
                        over.append(held.obj)
                        if held.temporary:
                            gone.append((key, held.obj))
        # Before the leases end; and without the lock, since it may read whole chunks.
        if not self._memory.all_untouched([held.obj for held in read]):
            for key, held in zip(unlocked, read, strict=True):
                if not self._was_intact(held):
                    results[key] = L1Error.KEY_IN_WRONG_STATE
        self._memory.release_all(over)
        return results, gone

    def holds(self, key: ObjectKey) -> bool:
        """Whether the key is in this table, so that lookups find it."""
        return key in self._held

    def locked(self, key: ObjectKey) -> bool:
        """Whether somebody reads the object."""
        held = self._held.get(key)
        return held is not None and held.count > 0 and held.until > time.monotonic()

    def forget(self, keys: Iterable[ObjectKey]) -> None:
        """Nobody finds these any more. Who reads them keeps the bytes until the locks lapse."""
        with self._lock:
            for key in list(keys):
                held = self._held.get(key)
                if held is not None:
                    self._leave(key, held)
                    self._forgotten.append(held)

    def all(self) -> list[ObjectKey]:
        """The keys of everything that is held."""
        with self._lock:
            return list(self._held)

    def temporaries(self) -> int:
        """How many objects are temporary."""
        with self._lock:
            return sum(held.temporary for held in self._held.values())

    def sweep(self) -> bool:
        """Give back what requests left locked and never came back for. At most once a second; False
        if it is too early."""
        now = time.monotonic()
        if now - self._swept < SWEEP_S:
            return False
        self._swept = now
        with self._lock:
            over = [(key, held) for key, held in self._held.items() if held.until <= now]
            for key, held in over:
                self._leave(key, held)
            forgotten = [held for held in self._forgotten if held.until <= now]
            self._forgotten = [held for held in self._forgotten if held.until > now]
        self._memory.release_all([held.obj for _, held in over] + [held.obj for held in forgotten])
        return True

    def close(self) -> None:
        """Give everything back, whoever holds it."""
        with self._lock:
            objs = [held.obj for held in (*self._held.values(), *self._forgotten)]
            self._held.clear()
            self._forgotten.clear()
        self._memory.release_all(objs)

    def _leave(self, key: ObjectKey, held: Held) -> None:
        del self._held[key]
        held.gone = True

    def _was_intact(self, held: Held) -> bool:
        """Until now, or until whoever unlocked it last gave it back, having looked."""
        return self._intact(held) or not (held.lost or held.obj.is_valid())

    def _intact(self, held: Held) -> bool:
        if held.lost:
            return False
        if self._memory.untouched(held.obj):
            return True
        if held.obj.is_valid() and not held.lost:  # else it was given back meanwhile, in order
            held.lost = True
            self.lost += 1
            if times := self._trouble.due("lost lease"):
                logger.error(
                    "a lease on a chunk was lost while this server held it for a request (%d times "
                    "since last reported): a load that was being prepared fails, and the engine "
                    "computes the chunk again; one that had been answered long before may have "
                    "seen wrong KV. The process was stopped for longer than beluga.lease or "
                    "beluga.dead_after, or the pool was formatted or truncated under it",
                    times,
                )
        return False
