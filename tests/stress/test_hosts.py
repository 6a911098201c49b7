"""Real processes as several hosts on one noncoherent pool; hosts are killed, stopped, and return.

Every flush and fence is executed; each host has a control block of its own. ``--kills 10000
--pauses 200 --report stress-noncoherent-1.json`` (or STRESS_KILLS, STRESS_PAUSES) is the long run.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from pathlib import Path
from typing import Any

from lmcache_beluga.pool import Pool

from .audit import audit, refill
from .conductor import Conductor, Round
from .content import Keyspace
from .crew import Crew
from .figures import BAR, Figures
from .host_pages import HostPages
from .latency import Measure, Window, worst_ms
from .nursery import control_dir
from .outages import Outages
from .schedule import Schedule
from .worker import FLAVOURS

_EXTENT = 512 << 10
#: Less than what all keys need: hosts take extents from each other all the time.
_POOL = 20 << 20

#: Milliseconds.
_TIMES = {"heartbeat_ms": 20, "dead_after_ms": 400, "lease_ms": 300, "lock_timeout_ms": 200}

#: Hosts, and processes of each.
_SHAPES = ((2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2))

#: Of all workers together, in CPUs: no queue for CPUs is to be mistaken for one at the pool.
_LOAD = 1.0

_KINDS = {
    "busy": 40,
    "operating": 22,
    "holding": 18,
    "attaching": 10,
    "two": 6,
    "restarting": 4,
    "all": 2,
    "all, twice": 1,
}

#: Kills between two audits, and how many audits before the pool is made anew.
_KILLS_PER_ROUND = 125
_ROUNDS_PER_POOL = 2
_MOST_POOLS_FEW_KILLS = 6


def test_hosts_come_and_go(shm_dir: Path, schedule: Schedule) -> None:
    dice = random.Random(f"hosts {schedule.seed}")
    figures = Figures()
    started = time.monotonic()
    pools = max(
        min(_MOST_POOLS_FEW_KILLS, schedule.kills // 20 + 1),
        schedule.kills // (_KILLS_PER_ROUND * _ROUNDS_PER_POOL),
    )
    shapes = itertools.cycle(dice.sample(_SHAPES, len(_SHAPES)))
    for number, (hosts, processes) in zip(range(1, pools + 1), shapes, strict=False):
        kills = schedule.kills * number // pools
        pauses = schedule.pauses * number // pools
        _one_pool(shm_dir, schedule, dice, figures, hosts, processes, kills, pauses)
        counts = figures.counts
        schedule.say(
            f"{counts['kills']}/{schedule.kills} kills, {counts['host paused']}/{schedule.pauses} "
            f"host pauses, {counts['operations']} operations, "
            f"{counts['chunks read and compared']} chunks compared, "
            f"{counts['extents seen to change hands']} extents moved, "
            f"{time.monotonic() - started:.0f} s"
        )
    _tell(schedule, figures, time.monotonic() - started)
    _judge(figures)


def _one_pool(
    directory: Path,
    schedule: Schedule,
    dice: random.Random,
    figures: Figures,
    hosts: int,
    processes: int,
    kills: int,
    pauses: int,
) -> None:
    """Kills and pauses until there have been so many in all; then every promise is checked."""
    path = directory / "pool"
    path.unlink(missing_ok=True)
    for host in range(hosts):
        Path(control_dir(str(directory), host)).mkdir(exist_ok=True)
    info = Pool.format(
        path,
        size=_POOL,
        extent_size=_EXTENT,
        chunk_hint=16 << 10,
        max_hosts=hosts,
        visibility="noncoherent",
    )
    seats = hosts * processes
    keyspace = Keyspace(seats)
    clears = dice.random() < 0.3
    before = figures.counts.copy()
    with (
        Crew(path, seats, _TIMES, hosts, directory) as crew,
        HostPages(path) as pages,
    ):
        seed = dice.randrange(1 << 32)
        conductor = Conductor(crew, seed, _KINDS, seats / _LOAD - 1)
        outages = Outages(conductor, _TIMES["dead_after_ms"] / 1000, dice)
        for number in range(1, _ROUNDS_PER_POOL + 1):
            kill_goal = (kills - before["kills"]) * number // _ROUNDS_PER_POOL
            pause_goal = (pauses - before["host paused"]) * number // _ROUNDS_PER_POOL
            now = Round(number, dice.randrange(len(FLAVOURS)), clears, dice.random() < 0.5)
            conductor.begin(now)
            while conductor.kills < kill_goal or outages.pauses < pause_goal:
                pages.look_at_claims()
                _something(conductor, outages, dice, kill_goal, pause_goal)
            with contextlib.ExitStack() as stack:
                early = not now.violent_end
                handles = _attach(stack, path, directory, hosts) if early else []
                conductor.end()
                handles = handles or _attach(stack, path, directory, hosts)
                audit(handles, keyspace)
                figures.counts["audits"] += 1
                if number == _ROUNDS_PER_POOL:
                    room = refill(dice.sample(handles, hosts), _EXTENT // 4)
                    assert room == info.extents * 4
                    figures.counts["slots filled after all, of one host"] += room
                    for handle in handles:
                        report = handle.check()
                        assert report.ok, report.errors
                    _add_counters(figures, handles)
        crew.listen()
        figures.add_board(crew.board, seats)
        figures.windows += outages.worst_ms
        figures.counts.update(
            {
                "kills": conductor.kills,
                "extents seen to change hands": pages.moves,
                **outages.happened,
            }
        )
        figures.counts.update({f"kills: {k}": n for k, n in conductor.kills_by_kind.items()})
        figures.counts[f"pools with {hosts} hosts of {processes} processes"] += 1
    for host in range(hosts):
        left = list(Path(control_dir(str(directory), host)).iterdir())
        assert not left, f"host {host} leaves {left}"


def _something(
    conductor: Conductor, outages: Outages, dice: random.Random, kills: int, pauses: int
) -> None:
    """The next event: so that kills and pauses reach their goals at about the same time."""
    behind = outages.pauses * max(kills, 1) <= conductor.kills * pauses
    if outages.pauses < pauses and (behind or conductor.kills >= kills):
        outages.pause_host()
    elif (draw := dice.random()) < 0.02:
        outages.kill_host()
    elif draw < 0.03:
        outages.pause_host_briefly()
    elif draw < 0.05:
        outages.pause_process()
    else:
        conductor.strike()


def _attach(stack: contextlib.ExitStack, path: Path, directory: Path, hosts: int) -> list[Pool]:
    return [
        stack.enter_context(
            Pool.attach(path, host_id=host, control_dir=control_dir(str(directory), host), **_TIMES)
        )
        for host in range(hosts)
    ]


def _tell(schedule: Schedule, figures: Figures, seconds: float) -> None:
    for measure in Measure:
        rows = figures.rows(measure)
        for name in ("all", "put", "get", "read_into", "remove", "contains_prefix"):
            if (row := rows.get(name)) is None:
                continue
            schedule.say(
                f"{measure.name.lower()} {name}: usually p99.9 {row['usual_p99.9_ms']:.2f}, worst "
                f"{row['usual_worst_ms']:.2f} ms; with a host away p99.9 "
                f"{row['outage_p99.9_ms']:.2f}, worst {row['outage_worst_ms']:.2f} ms"
            )
        schedule.say(
            f"{measure.name.lower()}: windows with an operation above {BAR}x its usual p99.9: "
            f"{figures.windows_above_bar(measure)}"
        )
    if schedule.report_path:
        # The first of these would have ended the run.
        found = {"wrong bytes": 0, "slots lost": 0, "hangs": 0, "problems found by check": 0}
        extra: dict[str, Any] = {
            "seed": schedule.seed,
            "seconds": round(seconds, 1),
            "settings_ms": _TIMES,
            "found": found,
        }
        figures.write(schedule.report_path, extra)


def _add_counters(figures: Figures, handles: list[Pool]) -> None:
    """What hosts have counted since they were recovered the last time."""
    for stats in (handle.stats() for handle in handles):
        for name in (
            "puts",
            "evictions",
            "repaired",
            "lost_leases",
            "refused_leased",
            "refused_busy",
            "swept_processes",
        ):
            figures.counts[f"{name}, since recoveries"] += stats[name]


def _judge(figures: Figures) -> None:
    """Nobody waits for a host that is away.

    Whoever did would wait for at least dead_after, or until it returns. What the machine itself
    does to single operations is no promise of the pool: only an operation that is much longer than
    the longest usual one is held against it. The figures of the long run tell the rest.
    """
    usual = worst_ms(figures.of(Window.USUAL, Measure.UNQUEUED).sum(axis=0))
    outage = worst_ms(figures.of(Window.OUTAGE, Measure.UNQUEUED).sum(axis=0))
    assert outage < max(4 * usual, _TIMES["dead_after_ms"] / 4), (
        f"while a host was away, an operation of another took {outage:.1f} ms; usually {usual:.1f}"
    )
