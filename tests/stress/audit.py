"""What must hold of a pool when nobody uses it: looked at with a handle of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_beluga.pool import CheckReport, Pool, PutResult

from .content import Keyspace
from .host_pages import HostPages

_SETTLE_S = 30.0


def audit(pools: Sequence[Pool], keyspace: Keyspace) -> int:
    """Asserts that every chunk is whole and all space accounted for. Returns how many there are.

    ``pools``: one handle of each host. The dead are swept by the living of their host, at a
    heartbeat: waits until that has happened.
    """
    _await_answers(pools)
    for pool in pools:
        stats = settle(pool)
        assert stats["writing"] == 0, f"{stats['writing']} half-written slots are left"
        assert stats["closing"] == 0, f"{stats['closing']} half-removed slots are left"
        assert stats["leased"] == 0, f"{stats['leased']} chunks are still leased"
        assert stats["views"] == 0 and stats["pins"] == 0
        assert stats["garbage"] == 0, "a record was found that does not validate"

    await_no_demand(pools)
    deadline = time.monotonic() + _SETTLE_S
    while True:
        reports = [pool.check() for pool in pools]
        occupancies = [pool.inspect()["occupancy"] for pool in pools]
        if pool.check() == reports[-1] or time.monotonic() > deadline:
            break
    for report in reports:
        assert report.ok, "\n".join(report.errors)
        assert report.chunks + report.free == report.slots
    # Each report is of all slots, and of the index of one host.
    assert sum(report.lane_entries for report in reports) == report.chunks

    _account(occupancies, pool, report)

    entries = list(pool.keys())
    assert len(entries) == report.chunks
    found = set()
    for entry in entries:
        number = keyspace.number(entry.record)
        found.add(number)
        assert not entry.leased
        _judge(pool, keyspace, number)
    present = pool.contains(keyspace.records)
    assert {number for number, there in enumerate(present) if there} == found
    return len(entries)


def refill(pools: Sequence[Pool], size: int) -> int:
    """Empties the pool and fills it to the last slot: proof that no space is lost.

    Returns how many chunks fit.
    """
    # Twice: another host's readers are seen to be gone at its next heartbeat; until then what is
    # cleared is out of sight, and still in its place.
    for _ in range(2):
        for pool in pools:
            pool.clear()
            settle(pool)
    _await_answers(pools)  # the others may clear what is put now, as well
    stats = pool.stats()
    assert stats["chunks"] == 0
    assert stats["extents_free"] == pool.info.extents, "an empty extent was not given back"
    evictions = stats["evictions"]
    room = pool.info.extents * (pool.info.extent_size // size)
    data = np.ones(size, dtype=np.uint8)
    for i in range(room):
        assert pool.put(b"fill/%d" % i, data) is PutResult.STORED
    stats = pool.stats()
    assert stats["evictions"] == evictions, "a chunk was evicted before the pool was full"
    assert stats["chunks"] == room
    pool.clear()
    return room


def control_blocks(uuid: str) -> list[str]:
    """Files that processes of a pool have left in /dev/shm; the last to leave takes them along."""
    return [name for name in os.listdir("/dev/shm") if uuid.replace("-", "") in name]


def settle(pool: Pool) -> dict[str, int]:
    """Waits until the living have swept after the dead. Returns the statistics then."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        stats = pool.stats()
        busy = stats["writing"] or stats["closing"] or stats["leased"]
        if not busy:
            # The statistics go by the free map, which is put right when somebody takes the lock
            # after its holder died. The check does.
            report = pool.check()
            # And of leases they count those on the host's own extents.
            busy = (
                report.writing or report.closing or any(entry.leased for entry in list(pool.keys()))
            )
        if not busy or time.monotonic() > deadline:
            return stats
        time.sleep(0.02)


def await_no_demand(pools: Sequence[Pool]) -> None:
    """Waits until no host asks for extents.

    What the last stores asked for makes extents change hands until it has faded, and chunks go
    with them: between two looks at a pool that nobody uses.
    """
    deadline = time.monotonic() + _SETTLE_S
    path = pools[0].info.devices[0].path
    while any(host.pressure for host in Pool.hosts(path, watch_ms=0)):
        assert time.monotonic() < deadline, "a host that stores nothing goes on asking for extents"
        time.sleep(0.02)


def _await_answers(pools: Sequence[Pool]) -> None:
    with HostPages(Path(pools[0].info.devices[0].path)) as pages:
        pages.await_answers()


def _judge(pool: Pool, keyspace: Keyspace, number: int) -> None:
    """A chunk that is listed can be read, and is what was stored.

    On a busy machine a heartbeat can be so late that a lease is void: then it is read again.
    """
    record = keyspace.record(number)
    deadline = time.monotonic() + _SETTLE_S
    while True:
        view, valid = pool.get(record), False
        if view is not None:
            with view:
                fault = keyspace.fault(number, view.array, view.meta)
                valid = view.valid()
            assert fault is None or not valid, fault
        buffer = np.empty(1 << 20, dtype=np.uint8)
        size = pool.read_into(record, buffer)
        if size is not None:
            fault = keyspace.fault(number, buffer[:size])
            assert fault is None, fault
        if valid and size is not None:
            return
        assert time.monotonic() < deadline, f"key {number} is listed and cannot be read"
        time.sleep(0.01)


def _account(occupancies: list[dict[str, Any]], pool: Pool, report: CheckReport) -> None:
    owned = sum(occupancy["extents_owned"] for occupancy in occupancies)
    assert owned + occupancies[0]["extents_free"] == pool.info.extents
    cuts = [cut for occupancy in occupancies for cut in occupancy["cuts"]]
    assert sum(cut["slots"] for cut in cuts) == report.slots
    assert sum(cut["used"] for cut in cuts) == report.chunks
    held = sum(cut["used"] * cut["slot_size"] for cut in cuts)
    assert held == sum(o["bytes_used"] + o["bytes_wasted"] for o in occupancies)
