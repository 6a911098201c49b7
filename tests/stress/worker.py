"""One process that hammers the pool with random operations and judges every byte that it reads."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmcache_beluga.pool import Pool, PutResult, Reservation, View

from .board import OPERATIONS, Board, Field, Phase
from .content import LENGTHS, SHARED_KEYS, Chunk, Keyspace
from .latency import Measure, Window, bucket_of, window_of

_MAX_VIEWS = 6
_MAX_RESERVATIONS = 2
_MAX_PINS = 4
_GUARD = 64
_LONGEST_REST_S = 0.2

#: How often each operation is drawn.
_WEIGHTS = {
    "put": 18,
    "put_batch": 6,
    "reserve": 9,
    "commit": 8,
    "commit_view": 5,
    "abort": 3,
    "get": 12,
    "get_batch": 5,
    "read_into": 8,
    "read_batch_into": 3,
    "recheck": 6,
    "release": 9,
    "pin": 4,
    "unpin": 4,
    "remove": 5,
    "evict": 1,
    "contains_prefix": 5,
    "touch": 2,
    "walk": 1,
}

#: Which lengths a round favours: extents cut for one round are in the way of the next.
FLAVOURS: tuple[tuple[int, ...], ...] = (
    LENGTHS,
    (900, 4096, 9_001),
    (100_003, 200_000, 262_144),
    (1, 30_000, 65_536, 262_144),
)


class WrongError(Exception):
    """The pool broke a promise."""


@dataclass(frozen=True)
class Orders:
    """What the conductor tells a worker when it starts it."""

    seat: int
    #: Of the worker's own random numbers.
    seed: str
    #: Index into FLAVOURS.
    flavour: int
    #: Whether workers also clear the whole pool now and then.
    clears: bool
    #: How much longer than it works a worker sleeps.
    rest: float = 0.0
    #: What somebody damages meanwhile: "metadata", "payload" too, or nothing. Chunks get lost then.
    damage: str = ""

    def encode(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def decode(cls, line: str) -> Orders:
        return cls(**json.loads(line))


@dataclass
class Held:
    """A view that is kept over other operations."""

    number: int
    view: View
    #: No other worker may remove this key while the view holds it.
    private: bool


@dataclass
class Filled:
    """A reservation, and the bytes that were written into it."""

    chunk: Chunk
    reservation: Reservation
    #: How much of the payload is in place; the rest follows at the commit.
    written: int


class OperationClock:
    """Runs operations, shows on the board which one, and how long they take."""

    def __init__(self, board: Board, seat: int) -> None:
        self.words = board.seat(seat)
        self._histograms = board.histograms(seat)
        # Nanoseconds on a CPU, and for which this thread could have run and had none.
        self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def time(self, name: str, operation: Callable[[], object]) -> None:
        """What was running while the conductor stopped this worker is not timed."""
        words = self.words
        index = OPERATIONS.index(name)
        pauses, window, queued = words[Field.PAUSES], words[Field.WINDOW], self._queued()
        start = time.monotonic_ns()
        words[Field.SINCE] = start
        words[Field.OPERATION] = index
        operation()
        words[Field.OPERATION] = 0
        taken = time.monotonic_ns() - start
        words[Field.DONE] += 1
        words[Field.COUNT + index] += 1
        if words[Field.PAUSES] != pauses:
            return
        words[Field.WORST + index] = max(taken, words[Field.WORST + index])
        if kind := window_of(window, words[Field.WINDOW]):
            unqueued = taken - (self._queued() - queued)
            self._count(kind, Measure.ELAPSED, index, taken)
            self._count(kind, Measure.UNQUEUED, index, unqueued)

    def _count(self, kind: Window, measure: Measure, operation: int, taken: int) -> None:
        self._histograms[kind - 1, measure, operation, bucket_of(taken)] += 1

    def _queued(self) -> int:
        return int(os.pread(self._schedule, 64, 0).split()[1])


@dataclass
class Worker:
    """Draws operations until it is told to stop. Raises WrongError for a broken promise."""

    pool: Pool
    keyspace: Keyspace
    orders: Orders
    clock: OperationClock
    dice: random.Random
    views: list[Held] = field(default_factory=list)
    reservations: list[Filled] = field(default_factory=list)
    pins: dict[int, int] = field(default_factory=dict)

    @property
    def words(self) -> memoryview:
        return self.clock.words

    def run(self) -> None:
        names = list(_WEIGHTS)
        weights = list(_WEIGHTS.values())
        if self.orders.damage == "payload":
            # What flips in a slot before it is committed is committed as it is.
            weights[names.index("reserve")] = 0
        if self.orders.clears:
            names.append("clear")
            weights.append(1)
        methods: dict[str, Callable[[], None]] = {n: getattr(self, f"_{n}") for n in names}
        words = self.words
        while not words[Field.STOP]:
            start = time.monotonic()
            for name in self.dice.choices(names, weights, k=16):
                self.clock.time(name, methods[name])
                words[Field.VIEWS] = len(self.views)
                words[Field.RESERVATIONS] = len(self.reservations)
                words[Field.PINS] = len(self.pins)
            if self.orders.rest:
                time.sleep(min((time.monotonic() - start) * self.orders.rest, _LONGEST_REST_S))

    def finish(self) -> None:
        """Leaves the pool, sometimes tidily and sometimes with everything still in hand."""
        if self.dice.random() < 0.5:
            for held in self.views:
                held.view.release()
            for filled in self.reservations:
                filled.reservation.abort()
            self.pool.unpin_all()
        self.clock.time("close", self.pool.close)
        self.views.clear()
        self.reservations.clear()

    # ---- storing

    def _put(self) -> None:
        chunk = self._any_chunk()
        payload, meta = self.keyspace.payload(chunk), self.keyspace.meta(chunk)
        record = self.keyspace.record(chunk.number)
        self._count(self.pool.put(record, payload, meta=meta, depth=self.dice.randrange(8)))

    def _put_batch(self) -> None:
        chunks = [self._any_chunk() for _ in range(self.dice.randint(2, 8))]
        results = self.pool.put_batch(
            [self.keyspace.record(c.number) for c in chunks],
            [self.keyspace.payload(c) for c in chunks],
            metas=[self.keyspace.meta(c) for c in chunks],
        )
        for result in results:
            self._count(result)

    def _reserve(self) -> None:
        if len(self.reservations) >= _MAX_RESERVATIONS:
            return
        chunk = self._any_chunk()
        size = chunk.size + self.dice.choice((0, 0, 1, 4096))
        reservation = self.pool.reserve(size)
        if reservation is None:
            self.words[Field.REFUSED] += 1
            return
        written = self.dice.choice((0, chunk.size // 2, chunk.size))
        reservation.array[:written] = self.keyspace.payload(chunk)[:written]
        self.reservations.append(Filled(chunk, reservation, written))

    def _commit(self) -> None:
        if (filled := self._fill()) is not None:
            chunk = filled.chunk
            result = filled.reservation.commit(
                self.keyspace.record(chunk.number), meta=self.keyspace.meta(chunk), size=chunk.size
            )
            self._count(result)

    def _commit_view(self) -> None:
        if (filled := self._fill()) is not None:
            chunk = filled.chunk
            result, view = filled.reservation.commit_view(
                self.keyspace.record(chunk.number), meta=self.keyspace.meta(chunk), size=chunk.size
            )
            self._count(result)
            if result is PutResult.STORED and view is not None:
                self._judge_view(chunk.number, view)
                self._keep(chunk.number, view)

    def _abort(self) -> None:
        if self.reservations:
            filled = self.reservations.pop(self.dice.randrange(len(self.reservations)))
            if self.dice.random() < 0.5:
                filled.reservation.abort()
            # Else it is dropped, which aborts it as well.

    def _fill(self) -> Filled | None:
        """Takes a reservation and writes the rest of its bytes, after a look at those it has."""
        if not self.reservations:
            return None
        filled = self.reservations.pop(self.dice.randrange(len(self.reservations)))
        payload = self.keyspace.payload(filled.chunk)
        array = filled.reservation.array
        if not np.array_equal(array[: filled.written], payload[: filled.written]):
            raise WrongError(f"somebody wrote into the reserved slot of {filled.chunk}")
        array[filled.written : filled.chunk.size] = payload[filled.written :]
        return filled

    # ---- reading

    def _get(self) -> None:
        number = self._any_number()
        view = self.pool.get(self.keyspace.record(number))
        if view is not None:
            self._judge_view(number, view)
            if self.dice.random() < 0.4:
                self._keep(number, view)
            else:
                view.release()

    def _get_batch(self) -> None:
        numbers = [self._any_number() for _ in range(self.dice.randint(2, 12))]
        records = [self.keyspace.record(number) for number in numbers]
        prefix_only = self.dice.random() < 0.3
        views = self.pool.get_prefix(records) if prefix_only else self.pool.get_batch(records)
        for number, view in zip(numbers, views, strict=False):
            if view is not None:
                self._judge_view(number, view)
                view.release()

    def _read_into(self) -> None:
        number = self._any_number()
        buffer = np.full(max(LENGTHS) + _GUARD, 0xA5, dtype=np.uint8)
        size = self.pool.read_into(self.keyspace.record(number), buffer)
        self._judge_copy(number, buffer, size)

    def _read_batch_into(self) -> None:
        numbers = [self._any_number() for _ in range(3)]
        buffers = [np.full(max(LENGTHS) + _GUARD, 0xA5, dtype=np.uint8) for _ in numbers]
        sizes = self.pool.read_batch_into([self.keyspace.record(n) for n in numbers], buffers)
        for number, buffer, size in zip(numbers, buffers, sizes, strict=True):
            self._judge_copy(number, buffer, size)

    def _recheck(self) -> None:
        """A view that was held over other operations still shows its chunk."""
        if self.views:
            held = self.dice.choice(self.views)
            present = self.pool.contains([held.view.record])[0]
            self._judge_view(held.number, held.view)
            if held.private and not present and held.view.valid() and not self.orders.damage:
                raise WrongError(f"key {held.number} is leased, and a lookup does not find it")

    def _release(self) -> None:
        if self.views:
            held = self.views.pop(self.dice.randrange(len(self.views)))
            self._judge_view(held.number, held.view)
            if self.dice.random() < 0.5:
                held.view.release()

    def _judge_view(self, number: int, view: View) -> None:
        fault = self.keyspace.fault(number, view.array, view.meta)
        if fault is None and view.record != self.keyspace.record(number):
            fault = f"a view of key {number} says that it is of {view.record!r}"
        # Bytes read under a lease that was lost meanwhile promise nothing.
        if not view.valid():
            self.words[Field.LOST] += 1
        elif fault is not None:
            raise WrongError(f"view: {fault}")
        else:
            self.words[Field.READS] += 1

    def _judge_copy(
        self, number: int, buffer: np.ndarray[tuple[int], np.dtype[np.uint8]], size: int | None
    ) -> None:
        if size is None:
            return
        fault = self.keyspace.fault(number, buffer[:size])
        if fault is None and (buffer[max(LENGTHS) :] != 0xA5).any():
            fault = f"key {number}: bytes behind the chunk were written"
        if fault is not None:
            raise WrongError(f"copy: {fault}")
        self.words[Field.READS] += 1

    def _keep(self, number: int, view: View) -> None:
        private = number in self.keyspace.private(self.orders.seat) and not self.orders.clears
        self.views.append(Held(number, view, private))
        if len(self.views) > _MAX_VIEWS:
            self.views.pop(0).view.release()

    # ---- keeping and removing

    def _pin(self) -> None:
        number = self._any_number()
        if len(self.pins) < _MAX_PINS and self.pool.pin(self.keyspace.record(number)):
            self.pins[number] = self.pins.get(number, 0) + 1

    def _unpin(self) -> None:
        if not self.pins:
            number = self._any_number()
            if self.pool.unpin(self.keyspace.record(number)):
                raise WrongError(f"key {number} was unpinned without ever being pinned")
            return
        number = self.dice.choice(list(self.pins))
        if not self.pool.unpin(self.keyspace.record(number)):
            raise WrongError(f"key {number} was pinned, and could not be unpinned")
        self.pins[number] -= 1
        if not self.pins[number]:
            del self.pins[number]

    def _remove(self) -> None:
        numbers = [self.dice.randrange(SHARED_KEYS) for _ in range(self.dice.randint(1, 3))]
        self.pool.remove([self.keyspace.record(number) for number in numbers])

    def _evict(self) -> None:
        self.pool.evict(self.dice.choice((1, 1, 1, 100_000, 1_000_000)))

    def _contains_prefix(self) -> None:
        mine = [held for held in self.views if held.private]
        leased = [held.view.record for held in mine]
        others = [self.keyspace.record(self._any_number()) for _ in range(24)]
        found = self.pool.contains_prefix(leased + others)
        if self.orders.damage:
            return
        if found < len(leased) and all(held.view.valid() for held in mine):
            raise WrongError(f"of {len(leased)} leased chunks a lookup finds {found}")

    def _touch(self) -> None:
        self.pool.touch([self.keyspace.record(self._any_number()) for _ in range(4)])

    def _walk(self) -> None:
        if self.dice.random() < 0.5:
            report = self.pool.check()
            if not report.ok and not self.orders.damage:
                raise WrongError(f"check: {report.errors}")
            return
        for entry in self.pool.keys():  # noqa: SIM118
            number = self.keyspace.number(entry.record)
            if entry.meta != self.keyspace.meta(Chunk(number, entry.size)):
                raise WrongError(f"the walk shows key {number} with metadata {entry.meta!r}")

    def _clear(self) -> None:
        if self.dice.random() < 0.02:
            self.pool.clear()

    # ---- drawing

    def _any_number(self) -> int:
        """A shared key mostly, one of the worker's own otherwise."""
        if self.dice.random() < 0.25:
            return self.dice.choice(self.keyspace.private(self.orders.seat))
        return self.dice.randrange(SHARED_KEYS)

    def _any_chunk(self) -> Chunk:
        sizes = LENGTHS if self.dice.random() < 0.1 else FLAVOURS[self.orders.flavour]
        return Chunk(self._any_number(), self.dice.choice(sizes))

    def _count(self, result: PutResult) -> None:
        self.words[Field.REFUSED] += result is PutResult.REFUSED


def work(
    path: str, options: dict[str, Any], keyspace: Keyspace, orders: Orders, board: Board
) -> None:
    """A worker's whole life: attach, hammer, leave."""
    dice = random.Random(orders.seed)
    clock = OperationClock(board, orders.seat)
    clock.words[Field.PHASE] = Phase.ATTACHING
    pools: list[Pool] = []
    clock.time("attach", lambda: pools.append(Pool.attach(path, **options)))
    clock.words[Field.PHASE] = Phase.RUNNING
    worker = Worker(pools[0], keyspace, orders, clock, dice)
    worker.run()
    worker.finish()
