"""The plot of ``beluga demo --hosts``: processes act as hosts, each loads what the others stored.

The pool is ``noncoherent``: every flush and fence of the protocol between hosts is executed. The
processes share nothing but the pool.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmcache_beluga.demo.job import Job
from lmcache_beluga.demo.processes import WorkerProcess
from lmcache_beluga.demo.scenario import (
    BYTES_PER_TOKEN,
    CHUNK_TOKENS,
    DemoError,
    Plan,
    Progress,
    check_plan,
    pool_errors,
    scratch_folder,
    scratch_pool,
    yaml_for,
)
from lmcache_beluga.pool import Pool
from lmcache_beluga.signals import held_back

MOST_HOSTS = 16
_MODULE = "lmcache_beluga.demo.host_worker"


@dataclass(frozen=True)
class HostOutcome:
    """What one host did. Times in seconds; ``counters`` are what the pool counted meanwhile."""

    host: int
    pid: int
    hit_before: int
    store_s: float
    loaded: int
    load_s: float
    bytes_compared: int
    bytes_wrong: int
    counters: dict[str, int]
    chunks_owned: int
    extents_owned: int

    @property
    def load_gb_per_s(self) -> float:
        """In 10^9 bytes per second, lookups included."""
        return self.loaded * BYTES_PER_TOKEN / self.load_s / 1e9 if self.load_s else 0.0


@dataclass(frozen=True)
class HostsOutcome:
    """What was seen."""

    tokens: int
    chunk_tokens: int
    hosts: list[HostOutcome]
    backends: list[str]
    device: str
    visibility: str
    payload_visibility: str
    pool_check_errors: list[str]
    pool: str
    pool_kind: str
    kept_in: str | None
    logs: dict[str, str]

    @property
    def checks(self) -> dict[str, bool]:
        """Every condition of success."""
        whole = self.tokens - self.tokens % self.chunk_tokens
        others = len(self.hosts) - 1
        chunks = whole // self.chunk_tokens
        return {
            "nothing_cached_before": all(host.hit_before == 0 for host in self.hosts),
            "each_owns_what_it_stored": all(host.chunks_owned == chunks for host in self.hosts),
            "each_loaded_all_others": all(host.loaded == others * whole for host in self.hosts),
            "served_by_pool": all(h.counters["gets"] >= others * chunks for h in self.hosts),
            "kv_equal": all(
                host.bytes_compared == others * whole * BYTES_PER_TOKEN and host.bytes_wrong == 0
                for host in self.hosts
            ),
            "noncoherent": self.visibility == "noncoherent",
            "pool_clean": not self.pool_check_errors,
        }

    @property
    def ok(self) -> bool:
        """True when every check holds."""
        return all(self.checks.values())

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {"ok": self.ok, "checks": self.checks} | asdict(self)


def run_hosts(plan: Plan, hosts: int, progress: Progress) -> HostsOutcome:
    """Run the demo with so many hosts.

    Raises:
        DemoError: it cannot start.
        WorkerFailed: one of the processes died or took too long.
        BelugaError: the pool could not be formatted.
    """
    check_plan(plan)
    if not 2 <= hosts <= MOST_HOSTS:
        raise DemoError(f"--hosts must be between 2 and {MOST_HOSTS}, not {hosts}")
    # Each host stores a prompt of its own, in extents of its own.
    size = plan.size or hosts * (2 * plan.kv_bytes + (8 << 20)) + (24 << 20)
    shape = {"max_hosts": hosts, "visibility": "noncoherent", "extent_size": 4 << 20}
    with scratch_folder(plan) as folder, scratch_pool(plan, size, **shape) as pool:
        deadline = time.monotonic() + plan.timeout_s
        with contextlib.ExitStack() as stack:
            workers = []
            for number in range(hosts):
                with held_back():
                    worker = _start(plan, number, hosts, pool, folder, deadline)
                    stack.callback(worker.kill)
                workers.append(worker)
            events = _play(workers, progress)
        with Pool.attach(str(pool), host_id=0) as looking:
            errors = pool_errors(looking)
            info = looking.info
        return HostsOutcome(
            tokens=plan.tokens,
            chunk_tokens=CHUNK_TOKENS,
            hosts=[_of(n, worker.pid, events[n]) for n, worker in enumerate(workers)],
            backends=events[0]["ready"]["backends"],
            device=events[0]["ready"]["device"],
            visibility=info.visibility,
            payload_visibility=info.payload_visibility,
            pool_check_errors=errors,
            pool=str(pool),
            pool_kind=info.devices[0].kind,
            kept_in=str(folder) if plan.keep else None,
            logs={worker.title: worker.log() for worker in workers},
        )


def _start(
    plan: Plan, number: int, hosts: int, pool: Path, folder: Path, deadline: float
) -> WorkerProcess:
    config = folder / f"host-{number}.yaml"
    config.write_text(yaml_for(pool, plan.backend) + f"  beluga.host_id: {number}\n")
    job = Job(
        name=f"host-{number}",
        pool=str(pool),
        config_file=str(config),
        backend=plan.backend,
        tokens=plan.tokens,
        seed=number,
        folder=str(folder),
        hosts=hosts,
    )
    job_file = folder / f"{job.name}.json"
    job.save(job_file)
    log = folder / f"{job.name}.log"
    return WorkerProcess(f"host {number}", job_file, log, deadline, module=_MODULE)


def _play(workers: list[WorkerProcess], progress: Progress) -> list[dict[str, dict[str, Any]]]:
    events: list[dict[str, dict[str, Any]]] = [{} for _ in workers]
    for number, worker in enumerate(workers):
        progress(f"starting {len(workers)} hosts", number, len(workers))
        worker.wait("started")
    stages = {"ready": "nobody finds anything", "store": "each stores", "load": "each loads"}
    for order, stage in stages.items():
        progress(stage, 0, len(workers))
        for worker in workers:
            worker.order(order)
        for number, worker in enumerate(workers):
            events[number][order] = worker.wait(order)
            progress(stage, number + 1, len(workers))
    for worker in workers:
        worker.order("close")
    for worker in workers:
        worker.wait("closed")
        worker.close()
    return events


def _of(number: int, pid: int, events: dict[str, dict[str, Any]]) -> HostOutcome:
    load = events["load"]
    return HostOutcome(
        host=number,
        pid=pid,
        hit_before=events["ready"]["hit"],
        store_s=events["store"]["store_s"],
        loaded=load["loaded"],
        load_s=load["load_s"],
        bytes_compared=load["compared"],
        bytes_wrong=load["wrong"],
        counters=load["counters"],
        chunks_owned=load["chunks"],
        extents_owned=load["extents"],
    )
