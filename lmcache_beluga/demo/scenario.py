"""The demo's plot: format a pool, start two engines, one computes, the other loads, judge."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lmcache_beluga.demo.job import Job
from lmcache_beluga.demo.processes import WorkerProcess
from lmcache_beluga.demo.text import text
from lmcache_beluga.pool import Pool
from lmcache_beluga.signals import held_back

CHUNK_TOKENS = 256
BYTES_PER_TOKEN = 4096
"""What the model's KV takes; the workers report theirs, and a difference is an error."""

_METADATA_ROOM = 12 << 20


class DemoError(Exception):
    """The demo cannot start; the text says what to do."""


class Progress(Protocol):
    """Told what happens while the demo runs."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        tokens: length of the prompt; at least two chunks of 256.
        pool: file to create, or a DAX device; None: a fresh file in /dev/shm.
        size: bytes of a file pool; None: enough for the prompt.
        keep: leave pool, YAML file and logs where they are.
        timeout_s: after so many seconds everything is stopped.
    """

    tokens: int
    pool: Path | None = None
    size: int | None = None
    keep: bool = False
    timeout_s: float = 300.0
    backend: str = "beluga"

    @property
    def kv_bytes(self) -> int:
        """KV of the prompt's full chunks."""
        return self.tokens // CHUNK_TOKENS * CHUNK_TOKENS * BYTES_PER_TOKEN

    @property
    def pool_bytes(self) -> int:
        """Size of a file pool."""
        return self.size or self.kv_bytes + self.kv_bytes // 4 + _METADATA_ROOM


@dataclass(frozen=True)
class Outcome:
    """What was seen. Times in seconds; ``logs`` are the last words of each engine."""

    tokens: int
    chunk_tokens: int
    hit_before: int
    hit: int
    loaded: int
    loaded_bytes: int
    recompute_s: float
    store_s: float
    lookup_s: float
    load_s: float
    first_token_recompute_s: float
    first_token_load_s: float
    kv_bytes_compared: int
    kv_bytes_wrong: int
    logits_compared: int
    logits_wrong: int
    control_kv_bytes_wrong: int
    control_logits_wrong: int
    control_logits_max_difference: float
    pool_hits: int
    pool_read_bytes: int
    backends: list[str]
    device: str
    pids: list[int]
    pool_check_errors: list[str]
    pool: str
    pool_kind: str
    kept_in: str | None
    logs: dict[str, str]

    @property
    def speed_up(self) -> float:
        """Recompute time over load time."""
        return self.recompute_s / self.load_s

    @property
    def load_gb_per_s(self) -> float:
        """Bytes loaded over load time (lookup included), in 10^9 bytes per second."""
        return self.loaded_bytes / self.load_s / 1e9

    @property
    def checks(self) -> dict[str, bool]:
        """Every condition of success."""
        full = self.tokens - self.tokens % self.chunk_tokens
        return {
            "nothing_cached_before": self.hit_before == 0,
            "all_chunks_hit": self.hit == full,
            "all_chunks_loaded": self.loaded == full,
            "served_by_pool": self.pool_hits >= full // self.chunk_tokens,
            "kv_equal": self.kv_bytes_compared > 0 and self.kv_bytes_wrong == 0,
            "logits_equal": self.logits_compared > 0 and self.logits_wrong == 0,
            "control_detected": self.control_kv_bytes_wrong > 0 and self.control_logits_wrong > 0,
            "pool_clean": not self.pool_check_errors,
        }

    @property
    def ok(self) -> bool:
        """True when every check holds."""
        return all(self.checks.values())

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        derived = {"speed_up": self.speed_up, "load_gb_per_s": self.load_gb_per_s}
        return {"ok": self.ok, "checks": self.checks} | asdict(self) | derived


def run(plan: Plan, progress: Progress) -> Outcome:
    """Run the demo.

    Raises:
        DemoError: it cannot start.
        WorkerFailed: one of the two processes died or took too long.
        BelugaError: the pool could not be formatted.
    """
    check_plan(plan)
    with scratch_folder(plan) as folder, scratch_pool(plan, plan.pool_bytes) as pool:
        config = folder / "lmcache.yaml"
        config.write_text(yaml_for(pool, plan.backend))
        deadline = time.monotonic() + plan.timeout_s
        with contextlib.ExitStack() as stack:
            engines = []
            for number, letter in enumerate("AB"):
                job = Job(
                    name=f"engine-{letter}",
                    pool=str(pool),
                    config_file=str(config),
                    backend=plan.backend,
                    tokens=plan.tokens,
                    seed=number,
                    folder=str(folder),
                )
                job_file = folder / f"{job.name}.json"
                job.save(job_file)
                log = folder / f"{job.name}.log"
                with held_back():
                    engine = WorkerProcess(f"engine {letter}", job_file, log, deadline)
                    stack.callback(engine.kill)
                engines.append(engine)
            # Attached all along: the first process to attach would tidy up what it should find.
            with Pool.attach(str(pool)) as watching:
                events = _play(plan, engines[0], engines[1], progress)
                errors = pool_errors(watching)
                kind = watching.info.devices[0].kind
        return _outcome(plan, engines, events, errors, pool, kind, folder)


def yaml_for(pool: Path, backend: str = "beluga") -> str:
    """The LMCache configuration, as a user would write it."""
    return f"""\
chunk_size: {CHUNK_TOKENS}
local_cpu: false
max_local_cpu_size: 0.25
storage_plugins: ["{backend}"]
extra_config:
  storage_plugin.{backend}.module_path: lmcache_beluga
  storage_plugin.{backend}.class_name: BelugaBackend
  beluga.pool: {json.dumps(str(pool))}
"""


def _play(
    plan: Plan, first: WorkerProcess, second: WorkerProcess, progress: Progress
) -> dict[str, dict[str, Any]]:
    progress("starting two engines", 0, 2)
    ready_a = first.wait("ready")
    progress("starting two engines", 1, 2)
    ready_b = second.wait("ready")
    for ready in (ready_a, ready_b):
        got = (ready["chunk_size"], ready["bytes_per_token"])
        if got != (CHUNK_TOKENS, BYTES_PER_TOKEN):
            raise DemoError(f"the engine runs with {got} tokens per chunk and bytes per token")
    second.order("look")
    look = second.wait("look")
    stage = "engine A computes and stores"
    progress(stage, 0, plan.tokens)
    first.order("compute")
    compute = first.wait("compute", lambda done: progress(stage, done, plan.tokens))
    progress("engine B loads and continues", 0, 1)
    second.order("load")
    load = second.wait("load")
    progress("closing", 0, 2)
    for engine in (first, second):
        engine.order("close")
    for engine in (first, second):
        engine.wait("closed")
        engine.close()
    return {"ready": ready_b, "look": look, "compute": compute, "load": load}


def _outcome(
    plan: Plan,
    engines: list[WorkerProcess],
    events: dict[str, dict[str, Any]],
    errors: list[str],
    pool: Path,
    kind: str,
    folder: Path,
) -> Outcome:
    compute, load = events["compute"], events["load"]
    step_b = load.get("step_s", 0.0)
    return Outcome(
        tokens=plan.tokens,
        chunk_tokens=CHUNK_TOKENS,
        hit_before=events["look"]["hit"],
        hit=load["hit"],
        loaded=load["loaded"],
        loaded_bytes=load["bytes"],
        recompute_s=compute["prefill_s"],
        store_s=compute["store_s"],
        lookup_s=load["lookup_s"],
        load_s=load["load_s"],
        first_token_recompute_s=compute["prefill_s"] + compute["step_s"],
        first_token_load_s=load["load_s"] + step_b,
        kv_bytes_compared=load.get("kv_bytes_compared", 0),
        kv_bytes_wrong=load.get("kv_bytes_wrong", 0),
        logits_compared=load.get("logits_compared", 0),
        logits_wrong=load.get("logits_wrong", 0),
        control_kv_bytes_wrong=load.get("control_kv_bytes_wrong", 0),
        control_logits_wrong=load.get("control_logits_wrong", 0),
        control_logits_max_difference=load.get("control_logits_max_difference", 0.0),
        pool_hits=load["pool"].get("gets", 0),
        pool_read_bytes=load["pool"].get("get_bytes", 0),
        backends=events["ready"]["backends"],
        device=events["ready"]["device"],
        pids=[engine.pid for engine in engines],
        pool_check_errors=errors,
        pool=str(pool),
        pool_kind=kind,
        kept_in=str(folder) if plan.keep else None,
        logs={engine.title: engine.log() for engine in engines},
    )


def check_plan(plan: Plan) -> None:
    """Raise DemoError if the prompt is too long, or too short."""
    longest = len(text())
    if not 2 * CHUNK_TOKENS <= plan.tokens <= longest:
        raise DemoError(
            f"--tokens must be between {2 * CHUNK_TOKENS} and {longest}, the length of the text; "
            f"got {plan.tokens}"
        )


@contextlib.contextmanager
def scratch_folder(plan: Plan) -> Iterator[Path]:
    """Where the YAML file, the logs and the reference lie; on disk rather than in /dev/shm."""
    if plan.keep:
        yield Path(tempfile.mkdtemp(prefix="beluga-demo-"))
        return
    with tempfile.TemporaryDirectory(prefix="beluga-demo-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def scratch_pool(plan: Plan, size: int, **options: Any) -> Iterator[Path]:
    """A formatted pool, removed afterwards unless it is a device or to be kept."""
    path = plan.pool or Path(f"/dev/shm/beluga-demo-{os.getpid()}.pool")
    if path.exists() and stat.S_ISCHR(path.stat().st_mode):
        Pool.format(str(path), **options)
        yield path
        return
    if path.exists():
        raise DemoError(f"{path} exists; the demo formats a fresh pool, so name another --pool")
    room = os.statvfs(path.parent)
    free = room.f_bavail * room.f_frsize
    if free < size:
        raise DemoError(
            f"{path.parent} has {free >> 20} MiB free, the demo needs {size >> 20} MiB: "
            "give it more (docker run --shm-size=1g), ask for fewer --tokens, "
            "or put the pool elsewhere with --pool"
        )
    try:
        Pool.format(str(path), size=size, **options)
        yield path
    finally:
        if not plan.keep:
            path.unlink(missing_ok=True)


def pool_errors(pool: Pool) -> list[str]:
    """What is wrong with the pool now that both engines are gone; nothing may be."""
    stats = pool.stats()
    left = [("writing", "half-written slots"), ("leased", "chunks still leased")]
    return list(pool.check().errors) + [f"{stats[key]} {what}" for key, what in left if stats[key]]
