"""G1 to G5 and G8 under SIGKILL: at least a thousand kills, then every promise is checked.

``pytest tests/stress --kills 10000 --seed 7`` (or STRESS_KILLS and STRESS_SEED) chooses another
amount and replays a schedule: who is killed in which situation, and what every worker draws, follow
from the seed.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from lmcache_beluga.pool import Pool

from .audit import audit, control_blocks, refill
from .board import Field
from .conductor import Conductor
from .content import Keyspace
from .crew import Crew
from .schedule import Schedule

_SEATS = 5
_KILLS_PER_ROUND = 150
_EXTENT = 512 << 10
_POOL = 16 << 20


@pytest.mark.parametrize("hosts", [1, 2])
def test_killed_processes_lose_nothing(pool_path: Path, schedule: Schedule, hosts: int) -> None:
    """Two hosts are both this machine: two control blocks, two owners of extents, one index."""
    geometry = {"extent_size": _EXTENT, "chunk_hint": 16 << 10, "max_hosts": hosts}
    info = Pool.format(pool_path, size=_POOL, **geometry)
    keyspace = Keyspace(_SEATS)
    kills = schedule.kills // hosts**2
    started = time.monotonic()
    with Crew(pool_path, _SEATS, {}, hosts) as crew:
        conductor = Conductor(crew, schedule.seed)
        for now in conductor.rounds():
            conductor.begin(now)
            goal = min(conductor.kills + _KILLS_PER_ROUND, kills)
            while conductor.kills < goal:
                conductor.strike()
            with contextlib.ExitStack() as stack:
                # Either some process is there all the time and sweeps after the dead, or the
                # audit's own handle is the first of its host and recovers it.
                early = not now.violent_end
                if early:
                    pools = _attach(stack, pool_path, hosts)
                conductor.end()
                if not early:
                    pools = _attach(stack, pool_path, hosts)
                chunks = audit(pools, keyspace)
                schedule.say(
                    f"{conductor.kills} kills, {crew.total(Field.DONE)} operations, "
                    f"{crew.total(Field.READS)} chunks read and compared, {chunks} survive"
                )
                if conductor.kills >= kills:
                    refill(pools, _EXTENT // 4)
                    counters = pools[0].stats()
                    break
        crew.listen()
        schedule.report(crew, counters, time.monotonic() - started)
    assert control_blocks(info.uuid) == []


def _attach(stack: contextlib.ExitStack, path: Path, hosts: int) -> list[Pool]:
    return [stack.enter_context(Pool.attach(path, host_id=host)) for host in range(hosts)]
