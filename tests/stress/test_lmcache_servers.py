"""Two LMCache servers on one pool, each killed at random, with LMCache's bench and checksums.

``STRESS_SERVER_SECONDS=1800 pytest tests/stress/test_lmcache_servers.py`` is the long run.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from lmcache_beluga.pool import Pool

from .schedule import Schedule
from .server_seat import CHUNK, NBYTES, Seat

_SECONDS = int(os.environ.get("STRESS_SERVER_SECONDS", "40"))
_MIB = 1 << 20
_START_S = 120.0


@pytest.mark.timeout(2 * _SECONDS + 600)
@pytest.mark.parametrize("hosts", [1, 2])
def test_servers_killed_at_random(
    shm_dir: Path, tmp_path: Path, schedule: Schedule, hosts: int
) -> None:
    """As two processes of one host, whose pool engines map, so that they outlive their server in
    the middle of a copy; and as two hosts that keep nothing coherent."""
    mapped = Path(f"/dev/shm/lmcache_l1_pool_{shm_dir.name}")
    pool_path = mapped if hosts == 1 else shm_dir / "pool"
    geometry = {"size": 32 * _MIB, "extent_size": _MIB, "chunk_hint": NBYTES, "max_hosts": hosts}
    visibility = "coherent" if hosts == 1 else "noncoherent"
    Pool.format(pool_path, visibility=visibility, **geometry)
    options = ("--chunk-size", str(CHUNK), "--supported-transfer-mode", "auto")
    draw = random.Random(schedule.seed)
    seats = [
        Seat(n, tmp_path, pool_path, (*options, "--host-id", str(n % hosts))) for n in range(2)
    ]
    end = time.monotonic() + _SECONDS / 2
    kills = 0
    try:
        while time.monotonic() < end:
            seat = draw.choice(seats)
            _wait(seat)
            time.sleep(draw.uniform(0, 6))
            seat.kill()
            kills += 1
        for seat in seats:
            _wait(seat)
    finally:
        statuses = [seat.close() for seat in seats]
    counts = seats[0].counts + seats[1].counts
    schedule.say(f"{kills} kills; " + ", ".join(f"{v} {k}" for k, v in sorted(counts.items())))
    assert [wrong for seat in seats for wrong in seat.wrong] == []
    assert all(counts[what] for what in ("chunks loaded", "chunks stored", "checksums compared"))
    assert all(status in (0, -15) for status in statuses)
    for seat in seats:
        assert "Traceback" not in seat.said()
    pools = [Pool.attach(pool_path, host_id=host) for host in range(hosts)]
    for pool in pools:
        stats = pool.stats()
        assert stats["leased"] == stats["writing"] == stats["garbage"] == 0
        assert pool.check().ok
    for pool in pools:
        pool.close()
    mapped.unlink(missing_ok=True)


def _wait(seat: Seat) -> None:
    deadline = time.monotonic() + _START_S
    while not seat.ready():
        assert time.monotonic() < deadline, f"no server serves:\n{seat.said()[-3000:]}"
        time.sleep(0.05)
