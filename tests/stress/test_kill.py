"""G1 to G5 and G8 under SIGKILL: at least a thousand kills, then every promise is checked.

``pytest tests/stress --kills 10000 --seed 7`` (or STRESS_KILLS and STRESS_SEED) chooses another
amount and replays a schedule: who is killed in which situation, and what every worker draws, follow
from the seed.
"""

from __future__ import annotations

import time
from pathlib import Path

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


def test_killed_processes_lose_nothing(pool_path: Path, schedule: Schedule) -> None:
    info = Pool.format(pool_path, size=_POOL, extent_size=_EXTENT, chunk_hint=16 << 10)
    keyspace = Keyspace(_SEATS)
    started = time.monotonic()
    with Crew(pool_path, _SEATS, {}) as crew:
        conductor = Conductor(crew, schedule.seed)
        for now in conductor.rounds():
            conductor.begin(now)
            goal = min(conductor.kills + _KILLS_PER_ROUND, schedule.kills)
            while conductor.kills < goal:
                conductor.strike()
            # Either some process is there all the time and sweeps after the dead, or the audit's
            # own handle is the first and recovers the host.
            early = None if now.violent_end else Pool.attach(pool_path)
            conductor.end()
            with early or Pool.attach(pool_path) as pool:
                chunks = audit(pool, keyspace)
                schedule.say(
                    f"{conductor.kills} kills, {crew.total(Field.DONE)} operations, "
                    f"{crew.total(Field.READS)} chunks read and compared, {chunks} survive"
                )
                if conductor.kills >= schedule.kills:
                    refill(pool, _EXTENT // 4)
                    counters = pool.stats()
                    break
        crew.listen()
        schedule.report(crew, counters, time.monotonic() - started)
    assert control_blocks(info.uuid) == []
