"""G1 and G6 while bits flip under load: no crash, no wrong byte, nobody hangs.

And afterwards the pool works. ``pytest tests/stress/test_bit_flips.py --flips 600`` (or
STRESS_FLIPS) flips for ten minutes in each case. Processes are killed meanwhile, so that recovery,
too, meets what is damaged. Payload flips with ``verify``: without checksums nobody could tell.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest

from lmcache_beluga.pool import Pool

from .audit import control_blocks, refill
from .bit_flips import BitFlips
from .board import Field
from .conductor import Conductor, Round
from .content import LENGTHS, Keyspace
from .crew import Crew
from .schedule import Schedule

_SEATS = 4
_EXTENT = 512 << 10
_POOL = 16 << 20
#: Heartbeats, and with them the scrub, follow each other quickly.
_OPTIONS = {"heartbeat_ms": 20}
_STRIKE_S = 1.0
_REPAIRED_S = 60.0


@pytest.mark.parametrize("visibility", ["coherent", "noncoherent"])
@pytest.mark.parametrize("damage", ["metadata", "payload"])
def test_flipped_bits_give_no_wrong_byte(
    pool_path: Path, schedule: Schedule, flip_seconds: int, damage: str, visibility: str
) -> None:
    hosts = 1 if visibility == "coherent" else 2
    geometry = {"extent_size": _EXTENT, "chunk_hint": 16 << 10, "max_hosts": hosts}
    info = Pool.format(pool_path, size=_POOL, visibility=visibility, **geometry)
    options = {**_OPTIONS, "verify": damage == "payload"}
    keyspace = Keyspace(_SEATS)
    with Crew(pool_path, _SEATS, options, hosts) as crew:
        conductor = Conductor(crew, schedule.seed, damage=damage)
        conductor.begin(Round(0, 0, clears=True, violent_end=False))
        with BitFlips(pool_path, schedule.seed, damage == "payload") as flips:
            end = time.monotonic() + flip_seconds
            while time.monotonic() < end:
                strike = time.monotonic() + _STRIKE_S
                while time.monotonic() < strike:
                    crew.watch()
                    time.sleep(0.02)
                conductor.strike()
        conductor.end()
        crew.listen()
        with contextlib.ExitStack() as stack:
            pools = [
                stack.enter_context(Pool.attach(pool_path, host_id=host, **options))
                for host in range(hosts)
            ]
            await_repair(pools)
            chunks = read_all(pools[0], keyspace)
            refill(pools, _EXTENT // 4)
        schedule.say(
            f"{flips.flips} flips, {conductor.kills} kills, {crew.total(Field.DONE)} operations, "
            f"{crew.total(Field.READS)} chunks read and compared, {crew.total(Field.LOST)} void "
            f"reads, {chunks} survive"
        )
        assert crew.total(Field.READS) > 0
    assert control_blocks(info.uuid) == []


def await_repair(pools: list[Pool]) -> None:
    """The scrub needs no help: after a while there is nothing left to complain about."""
    deadline = time.monotonic() + _REPAIRED_S
    while errors := [error for pool in pools for error in pool.check().errors]:
        assert time.monotonic() < deadline, "\n".join(errors)
        time.sleep(0.05)


def read_all(pool: Pool, keyspace: Keyspace) -> int:
    """Reads every chunk that the pool says it has. With payload damage some are none."""
    read = 0
    buffer = np.empty(max(LENGTHS), dtype=np.uint8)
    for entry in list(pool.keys()):
        size = pool.read_into(entry.record, buffer)
        if size is not None:
            fault = keyspace.fault(keyspace.number(entry.record), buffer[:size])
            assert fault is None, fault
            read += 1
    return read
