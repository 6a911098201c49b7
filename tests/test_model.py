"""Random programs against a dictionary: a read returns what was stored, or misses for a reason.

The handles of a program are processes of one host, or each is a host of its own on a pool that
keeps nothing coherent between them.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pool_layout import layout_of
from processes import wait_until

from lmcache_beluga import Pool, PutResult, Reservation, View

KEYS = [b"key %d" % i for i in range(20)]
KIB = 1 << 10

keys = st.sampled_from(KEYS)
key_lists = st.lists(keys, max_size=8)
sizes = st.sampled_from([1, 64, 1000, 3000, 3072, 8000, 8192, 20_000, 65_536])
metas = st.binary(max_size=20)
depths = st.integers(0, 5000)


@dataclass
class Chunk:
    data: bytes
    meta: bytes


@dataclass
class Handle:
    """One attached pool, and what is held through it."""

    pool: Pool
    views: list[tuple[View, bytes, Chunk]] = field(default_factory=list)
    reservations: list[tuple[Reservation, bytes]] = field(default_factory=list)
    pins: Counter[bytes] = field(default_factory=Counter)


class PoolMachine(RuleBasedStateMachine):
    """``stored`` is what may be in the pool. A key leaves it when it is removed or seen to be gone,
    so one that comes back by itself is an error."""

    #: May room run out?
    roomy: bool
    #: How many host ids the handles have.
    hosts: int

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.serial = itertools.count(1)
        self.stored: dict[bytes, Chunk] = {}
        self.handles: list[Handle] = []
        #: Keys that a host which is away is asked to remove: it does when it comes back.
        self.asked: set[bytes] = set()

    @property
    def alone(self) -> bool:
        return self.hosts == 1

    @initialize()
    def begin(self) -> None:
        mode: dict[str, Any] = {"max_hosts": self.hosts}
        if not self.alone:
            mode["visibility"] = "noncoherent"
        if self.roomy:
            Pool.format(self.path, size=64 << 20, extent_size=64 * KIB, chunk_hint=8 * KIB, **mode)
        else:
            self.path.unlink(missing_ok=True)
            # Each host has metadata of its own.
            size = KIB * KIB + (self.hosts - 1) * 64 * KIB
            Pool.format(self.path, size=size, extent_size=64 * KIB, chunk_hint=2 * KIB, **mode)
        self.asked = set()
        self.handles = []
        self.handles = [self.attach()]

    def attach(self) -> Handle:
        taken = {handle.pool.host_id for handle in self.handles}
        host = 0 if self.alone else min(set(range(self.hosts)) - taken)
        # However long this machine stands still: no lease may end, no put be refused for it.
        times = {"heartbeat_ms": 5, "dead_after_ms": 60_000, "lock_timeout_ms": 20_000}
        return Handle(Pool.attach(self.path, host_id=host, copy_threads=1, **times))

    def await_answers(self) -> None:
        """Until every host that is here has acted on what the others ask of it."""
        if not self.alone:
            here = [handle.pool.host_id for handle in self.handles]
            wait_until(lambda: not unanswered(self.path, here))

    def owned_by_the_absent(self, keys: set[bytes]) -> set[bytes]:
        if self.alone:
            return set()
        here = {handle.pool.host_id for handle in self.handles}
        entries = self.handles[0].pool.keys()
        return {entry.record for entry in entries if entry.host not in here} & keys

    # ---- what must hold

    def new_chunk(self, size: int, meta: bytes) -> Chunk:
        """Data that no other chunk has."""
        return Chunk((b"%16d" % next(self.serial) * (size // 16 + 1))[-size:], meta)

    def held(self) -> set[bytes]:
        """Keys whose chunks may not go."""
        kept = {key for handle in self.handles for key in handle.pins}
        for handle in self.handles:
            kept |= {key for _, key, chunk in handle.views if self.stored.get(key) is chunk}
        return kept

    def something_is_held(self) -> bool:
        return any(h.views or h.pins or h.reservations for h in self.handles)

    def saw(self, key: bytes, present: bool) -> None:
        """A lookup answered."""
        assert not present or key in self.stored, f"{key!r} came back from nowhere"
        if not present and key in self.asked:
            self.forget([key])
        if not present and key in self.stored:
            assert not self.roomy, f"{key!r} went without need"
            assert key not in self.held(), f"{key!r} went although it was leased"
            del self.stored[key]

    def put_said(self, key: bytes, chunk: Chunk, result: PutResult) -> None:
        if result is PutResult.DUPLICATE:
            assert key in self.stored, f"{key!r} is a duplicate of nothing"
            return
        self.saw(key, present=False)
        if result is PutResult.STORED:
            self.stored[key] = chunk
        else:
            assert not self.roomy
            # Another host's room may come only with its next heartbeats.
            assert self.something_is_held() or not self.alone, "refused, and nothing is held"

    def presence(self, handle: Handle, which: Iterable[bytes] = KEYS) -> set[bytes]:
        which = list(which)
        there = {
            k for k, present in zip(which, handle.pool.contains(which), strict=True) if present
        }
        for key in which:
            self.saw(key, key in there)
        return there

    def forget(self, gone: Iterable[bytes]) -> None:
        """Chunks that were removed. Pins of them hold on to what nobody finds any more."""
        for key in gone:
            self.stored.pop(key, None)
            self.asked.discard(key)
            for handle in self.handles:
                while handle.pins[key]:
                    assert handle.pool.unpin(key)
                    handle.pins[key] -= 1
                del handle.pins[key]

    @invariant()
    def leased_chunks_never_change(self) -> None:
        for handle in self.handles:
            for view, key, chunk in handle.views:
                assert view.array.tobytes() == chunk.data, key
                assert (view.meta, view.record) == (chunk.meta, key)
                assert view.valid(), key

    # ---- storing

    @rule(which=st.integers(0, 3), key=keys, size=sizes, meta=metas, depth=depths)
    def put(self, which: int, key: bytes, size: int, meta: bytes, depth: int) -> None:
        pool = self.pick(which).pool
        chunk = self.new_chunk(size, meta)
        self.put_said(key, chunk, pool.put(key, chunk.data, meta=meta, depth=depth))

    @rule(which=st.integers(0, 3), batch=key_lists, size=sizes, meta=metas)
    def put_batch(self, which: int, batch: list[bytes], size: int, meta: bytes) -> None:
        chunks = [self.new_chunk(size, meta) for _ in batch]
        results = self.pick(which).pool.put_batch(
            batch, [chunk.data for chunk in chunks], metas=[meta] * len(batch)
        )
        for key, chunk, result in zip(batch, chunks, results, strict=True):
            # Tiny pools: the batch's own unpublished slots may leave no room for the rest of it.
            if result is not PutResult.REFUSED or self.roomy or len(batch) == 1:
                self.put_said(key, chunk, result)

    @rule(which=st.integers(0, 3), size=sizes, key=st.none() | keys)
    def reserve(self, which: int, size: int, key: bytes | None) -> None:
        handle = self.pick(which)
        if len(handle.reservations) >= 3:
            return
        reservation = handle.pool.reserve(size, key)
        if reservation is None:
            if key is not None and key in self.presence(handle):
                return
            assert not self.roomy
            assert self.something_is_held() or not self.alone
            return
        if key is not None:
            self.saw(key, present=False)
        chunk = self.new_chunk(size, b"")
        assert reservation.capacity >= reservation.size == size
        reservation.buffer[:] = chunk.data
        handle.reservations.append((reservation, chunk.data))

    @rule(which=st.integers(0, 3), key=keys, meta=metas, part=st.booleans(), keep=st.booleans())
    def commit(self, which: int, key: bytes, meta: bytes, part: bool, keep: bool) -> None:
        handle = self.pick(which)
        if not handle.reservations:
            return
        reservation, data = handle.reservations.pop(0)
        assert reservation.array.tobytes() == data  # nobody else wrote there
        size = (len(data) + 1) // 2 if part else len(data)
        chunk = Chunk(data[:size], meta)
        if keep:
            result, view = reservation.commit_view(key, meta=meta, size=size)
            assert (view is not None) == (result is PutResult.STORED)
        else:
            result, view = reservation.commit(key, meta=meta, size=size), None
        assert reservation.done
        self.put_said(key, chunk, result)
        if view is not None:
            handle.views.append((view, key, chunk))

    @rule(which=st.integers(0, 3))
    def abort(self, which: int) -> None:
        handle = self.pick(which)
        if handle.reservations:
            handle.reservations.pop()[0].abort()

    # ---- reading

    @rule(which=st.integers(0, 3), batch=key_lists)
    def contains(self, which: int, batch: list[bytes]) -> None:
        self.presence(self.pick(which), batch)

    @rule(which=st.integers(0, 3), batch=key_lists)
    def contains_prefix(self, which: int, batch: list[bytes]) -> None:
        count = self.pick(which).pool.contains_prefix(batch)
        for key in batch[:count]:
            self.saw(key, present=True)
        if count < len(batch):
            self.saw(batch[count], present=False)

    @rule(which=st.integers(0, 3), batch=key_lists, prefix=st.booleans(), keep=st.booleans())
    def get(self, which: int, batch: list[bytes], prefix: bool, keep: bool) -> None:
        handle = self.pick(which)
        views: list[View | None] = (
            list(handle.pool.get_prefix(batch)) if prefix else handle.pool.get_batch(batch)
        )
        if prefix and len(views) < len(batch):
            self.saw(batch[len(views)], present=False)
        for key, view in zip(batch, views, strict=False):
            self.saw(key, view is not None)
            if view is None:
                continue
            chunk = self.stored[key]
            assert view.array.tobytes() == chunk.data
            assert (view.meta, view.record, view.size) == (chunk.meta, key, len(chunk.data))
            assert view.valid()
            if keep and len(handle.views) < 6:
                handle.views.append((view, key, chunk))
            else:
                view.release()

    @rule(which=st.integers(0, 3), index=st.integers(0, 5))
    def release(self, which: int, index: int) -> None:
        handle = self.pick(which)
        if index < len(handle.views):
            view, _, _ = handle.views.pop(index)
            view.release()
            assert view.released
            assert not view.valid()

    @rule(which=st.integers(0, 3), batch=key_lists)
    def read_into(self, which: int, batch: list[bytes]) -> None:
        buffers = [bytearray(70_000) for _ in batch]
        counts = self.pick(which).pool.read_batch_into(batch, buffers)
        for key, buffer, count in zip(batch, buffers, counts, strict=True):
            self.saw(key, count is not None)
            if count is not None:
                assert bytes(buffer[:count]) == self.stored[key].data

    @rule(which=st.integers(0, 3))
    def walk(self, which: int) -> None:
        handle = self.pick(which)
        there = self.presence(handle)
        walked = list(handle.pool.keys())
        entries = [entry for entry in walked if entry.state == "ready"]
        found = sorted(entry.record for entry in entries)
        if self.alone or self.roomy:
            assert found == sorted(there - self.asked | self.asked & set(found))
        else:
            assert set(found) <= there  # other hosts may be making room
        for entry in entries:
            chunk = self.stored[entry.record]
            assert (entry.meta, entry.size) == (chunk.meta, len(chunk.data))
            assert entry.leased or entry.record not in self.held()

    # ---- keeping and removing

    @rule(which=st.integers(0, 3), batch=key_lists)
    def pin_prefix(self, which: int, batch: list[bytes]) -> None:
        handle = self.pick(which)
        count = handle.pool.pin_prefix(batch)
        for key in batch[:count]:
            self.saw(key, present=True)
            handle.pins[key] += 1
        if count < len(batch):
            self.saw(batch[count], present=False)

    @rule(which=st.integers(0, 3), key=keys)
    def unpin(self, which: int, key: bytes) -> None:
        handle = self.pick(which)
        assert handle.pool.unpin(key) == (handle.pins[key] > 0)
        handle.pins[key] -= 1
        if handle.pins[key] <= 0:
            del handle.pins[key]

    @rule(which=st.integers(0, 3), batch=key_lists)
    def touch(self, which: int, batch: list[bytes]) -> None:
        handle = self.pick(which)
        there = self.presence(handle, batch)
        touched = handle.pool.touch(batch)
        assert touched <= sum(key in there for key in batch)
        assert touched == sum(key in there for key in batch) or not (self.alone or self.roomy)

    @rule(which=st.integers(0, 3), batch=key_lists)
    def remove(self, which: int, batch: list[bytes]) -> None:
        handle = self.pick(which)
        there = self.presence(handle, batch)
        removed = handle.pool.remove(batch)
        if self.alone:
            assert removed == len(there)
        elif self.roomy:  # a key that is named twice may be asked for twice
            assert len(there) <= removed <= sum(key in there for key in batch)
        self.removed(there)
        assert self.presence(handle, batch) <= self.asked

    @rule(which=st.integers(0, 3))
    def clear(self, which: int) -> None:
        handle = self.pick(which)
        there = self.presence(handle)
        removed = handle.pool.clear()
        assert removed <= len(there)
        assert removed == len(there) or not self.alone
        self.removed(there)
        assert self.presence(handle) <= self.asked

    def removed(self, there: set[bytes]) -> None:
        """These keys were to be removed, whoever owns their chunks."""
        self.await_answers()
        later = self.owned_by_the_absent(there)
        self.forget(there - later)
        self.asked |= later

    @rule(which=st.integers(0, 3), nbytes=st.sampled_from([0, 1, 10_000, 200_000, 1 << 40]))
    def evict(self, which: int, nbytes: int) -> None:
        handle = self.pick(which)
        before = self.presence(handle)
        freed = handle.pool.evict(nbytes)
        after = {k for k, here in zip(KEYS, handle.pool.contains(KEYS), strict=True) if here}
        gone = before - after
        assert after <= before
        if self.alone:
            assert freed == sum(len(self.stored[key].data) for key in gone)
            assert freed >= nbytes or after <= self.held()
        gone -= self.asked
        assert not gone & self.held()
        for key in gone:
            del self.stored[key]

    # ---- coming and going

    def pick(self, which: int) -> Handle:
        return self.handles[which % len(self.handles)]

    @precondition(lambda self: len(self.handles) < 3)
    @rule()
    def one_more_handle(self) -> None:
        self.handles.append(self.attach())
        self.presence(self.handles[0], self.asked.copy())

    @rule(which=st.integers(0, 3))
    def close_a_handle(self, which: int) -> None:
        """What is stored outlives the handle; what was held through it is given back."""
        handle = self.pick(which)
        handle.pool.close()
        for view, key, _ in handle.views:
            assert not view.valid(), key
            view.release()
        for reservation, _ in handle.reservations:
            reservation.abort()
        self.handles.remove(handle)
        if not self.handles:
            self.handles.append(self.attach())
        self.presence(self.handles[0])

    def teardown(self) -> None:
        if not self.handles:
            return
        for handle in self.handles:
            for view, _, _ in handle.views:
                view.release()
            for reservation, _ in handle.reservations:
                reservation.abort()
            assert handle.pool.unpin_all() == handle.pins.total()
            handle.views, handle.reservations = [], []
            handle.pins.clear()
            assert handle.pool.stats()["pins"] == 0
        if not self.alone:
            self.retire_all()
            return
        last = self.handles.pop()
        for handle in self.handles:
            handle.pool.close()
        self.handles = [last]
        with last.pool as pool:
            wait_until(lambda: pool.stats()["closing"] == 0)
            there = self.presence(last)
            stats = pool.stats()
            held = ("writing", "leased", "pins", "garbage", "lost_leases", "repaired")
            assert {name: stats[name] for name in held} == dict.fromkeys(held, 0)
            assert stats["chunks"] == len(there)
            assert stats["bytes_used"] == sum(len(self.stored[key].data) for key in there)
            assert stats["extents_owned"] + stats["extents_free"] == pool.info.extents
            report = pool.check()
            assert report.ok, report.errors
            assert (report.chunks, report.lane_entries) == (len(there), len(there))
            pool.clear()
            assert pool.stats()["extents_free"] == pool.info.extents

    def retire_all(self) -> None:
        """Nothing is left of hosts that have retired."""
        while len(self.handles) < self.hosts:
            self.handles.append(self.attach())
        self.await_answers()
        for handle in self.handles:
            wait_until(lambda handle=handle: handle.pool.stats()["closing"] == 0)
            report = handle.pool.check()
            assert report.ok, report.errors
            stats = handle.pool.stats()
            none = ("writing", "leased", "garbage", "lost_leases", "repaired")
            assert {name: stats[name] for name in none} == dict.fromkeys(none, 0)
        *others, last = self.handles
        for handle in others:
            assert handle.pool.retire()
        last.pool.clear()
        assert last.pool.stats()["extents_free"] == last.pool.info.extents
        assert last.pool.retire()
        self.handles = []


def unanswered(path: Path, hosts: list[int]) -> bool:
    """Has one of these hosts asked another for something that this has not done yet?"""
    with path.open("rb") as file:
        layout = layout_of(file.read(4096))
        heads, read = {}, {}
        for host in hosts:
            file.seek(layout.hosts + host * layout.host_stride)
            page = file.read(4096)
            (heads[host],) = struct.unpack_from("<Q", page, 192)
            read[host] = struct.unpack_from("<64Q", page, 512)
    return any(
        heads[asks] != read[owner][asks] for asks in hosts for owner in hosts if asks != owner
    )


class RoomyMachine(PoolMachine):
    roomy, hosts = True, 1


class TinyMachine(PoolMachine):
    roomy, hosts = False, 1


class RoomyHosts(PoolMachine):
    roomy, hosts = True, 4


class TinyHosts(PoolMachine):
    roomy, hosts = False, 4


SETTINGS = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("machine", [RoomyMachine, RoomyHosts])
def test_with_room_for_everything(pool_path: Path, machine: type[PoolMachine]) -> None:
    run_state_machine_as_test(lambda: machine(pool_path), settings=SETTINGS)


@pytest.mark.parametrize("machine", [TinyMachine, TinyHosts])
def test_with_eviction_all_the_time(pool_path: Path, machine: type[PoolMachine]) -> None:
    run_state_machine_as_test(lambda: machine(pool_path), settings=SETTINGS)
