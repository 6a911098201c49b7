"""``beluga demo``: runs end to end, notices what is wrong, leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmcache")
pytest.importorskip("transformers")

from lmcache_beluga.demo import processes, scenario
from lmcache_beluga.demo.hosts import HostOutcome, HostsOutcome
from lmcache_beluga.demo.processes import WorkerFailed
from lmcache_beluga.demo.scenario import DemoError, Outcome, Plan
from lmcache_beluga.demo.text import text, tokens
from lmcache_beluga.signals import terminable

COMMAND = [sys.executable, "-m", "lmcache_beluga", "demo"]
GOOD = Outcome(
    tokens=600,
    chunk_tokens=256,
    hit_before=0,
    hit=512,
    loaded=512,
    loaded_bytes=512 * 4096,
    recompute_s=1.0,
    store_s=0.01,
    lookup_s=0.001,
    load_s=0.01,
    first_token_recompute_s=1.1,
    first_token_load_s=0.11,
    kv_bytes_compared=512 * 4096,
    kv_bytes_wrong=0,
    logits_compared=2048,
    logits_wrong=0,
    control_kv_bytes_wrong=1000,
    control_logits_wrong=100,
    control_logits_max_difference=1.0,
    pool_hits=2,
    pool_read_bytes=512 * 4096,
    backends=["beluga"],
    device="CPU",
    pids=[1, 2],
    pool_check_errors=[],
    pool="/dev/shm/x",
    pool_kind="tmpfs",
    kept_in=None,
    logs={},
)


def silent(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def leftovers() -> set[Path]:
    """Pools of the demo in shared memory; conftest looks after everything else there."""
    return set(Path("/dev/shm").glob("beluga-demo-*"))


def run(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_second_engine_continues_from_the_first_ones_kv(tmp_path: Path) -> None:
    before = leftovers()
    pool = tmp_path / "demo.pool"
    done = run("--tokens", "600", "--pool", str(pool), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)  # nothing but JSON on stdout
    assert outcome["ok"] and all(outcome["checks"].values())
    assert outcome["hit_before"] == 0
    assert outcome["hit"] == 512, "the full chunks of 600 tokens"
    assert outcome["kv_bytes_compared"] == 512 * 4096
    assert outcome["pool_hits"] == 2
    assert outcome["control_kv_bytes_wrong"] > 0 and outcome["control_logits_wrong"] > 0
    assert len(set(outcome["pids"])) == 2
    assert not pool.exists()
    assert leftovers() == before


def test_table_says_what_was_compared() -> None:
    before = leftovers()
    done = run("--tokens", "512")  # a full hit: the last token is computed all the same
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("Tokens hit", "512 of 512", "Time to recompute", "bit for bit", "OK", "Emulated"):
        assert words in done.stdout
    assert leftovers() == before


def test_hosts_load_what_the_others_stored() -> None:
    before = leftovers()
    done = run("--hosts", "4", "--tokens", "1100", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["ok"] and all(outcome["checks"].values())
    assert outcome["visibility"] == "noncoherent"
    assert [host["host"] for host in outcome["hosts"]] == [0, 1, 2, 3]
    assert len({host["pid"] for host in outcome["hosts"]}) == 4
    for host in outcome["hosts"]:
        assert (host["loaded"], host["bytes_compared"]) == (3 * 1024, 3 * 1024 * 4096)
        assert host["counters"]["gets"] == 3 * 4
        assert host["chunks_owned"] == 4
    assert leftovers() == before


def test_table_of_hosts() -> None:
    done = run("--hosts", "2", "--tokens", "512")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("2 hosts, one noncoherent pool", "Loaded of others", "512 tokens", "OK"):
        assert words in done.stdout


GOOD_HOST = HostOutcome(
    host=0,
    pid=1,
    hit_before=0,
    store_s=0.1,
    loaded=512,
    load_s=0.1,
    bytes_compared=512 * 4096,
    bytes_wrong=0,
    counters={"gets": 2},
    chunks_owned=2,
    extents_owned=1,
)


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"bytes_wrong": 1}, "kv_equal"),
        ({"bytes_compared": 0}, "kv_equal"),
        ({"loaded": 256}, "each_loaded_all_others"),
        ({"hit_before": 256}, "nothing_cached_before"),
        ({"counters": {"gets": 1}}, "served_by_pool"),
        ({"chunks_owned": 1}, "each_owns_what_it_stored"),
    ],
)
def test_every_difference_between_hosts_fails(change: dict[str, Any], failed: str) -> None:
    good = HostsOutcome(
        tokens=600,
        chunk_tokens=256,
        hosts=[GOOD_HOST, dataclasses.replace(GOOD_HOST, host=1)],
        backends=["beluga"],
        device="CPU",
        visibility="noncoherent",
        payload_visibility="flush",
        pool_check_errors=[],
        pool="/dev/shm/x",
        pool_kind="tmpfs",
        kept_in=None,
        logs={},
    )
    assert good.ok
    worse = dataclasses.replace(GOOD_HOST, **change)
    bad = dataclasses.replace(good, hosts=[GOOD_HOST, worse])
    assert [name for name, ok in bad.checks.items() if not ok] == [failed]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"kv_bytes_wrong": 1}, "kv_equal"),
        ({"kv_bytes_compared": 0}, "kv_equal"),
        ({"logits_wrong": 1}, "logits_equal"),
        ({"hit": 256}, "all_chunks_hit"),
        ({"loaded": 256}, "all_chunks_loaded"),
        ({"hit_before": 256}, "nothing_cached_before"),
        ({"pool_hits": 1}, "served_by_pool"),
        ({"control_logits_wrong": 0}, "control_detected"),
        ({"pool_check_errors": ["a record"]}, "pool_clean"),
    ],
)
def test_every_difference_fails(change: dict[str, object], failed: str) -> None:
    assert GOOD.ok
    bad = dataclasses.replace(GOOD, **change)
    assert not bad.ok
    assert [name for name, ok in bad.checks.items() if not ok] == [failed]


def test_missing_backend_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = scenario.yaml_for
    monkeypatch.setattr(
        scenario, "yaml_for", lambda *names: good(*names).replace("BelugaBackend", "NoSuchBackend")
    )
    plan = Plan(tokens=512, pool=tmp_path / "demo.pool", timeout_s=120)
    with pytest.raises(WorkerFailed, match="without the backend 'beluga'"):
        scenario.run(plan, silent)
    assert list(tmp_path.iterdir()) == []


def test_hung_worker_is_killed(tmp_path: Path) -> None:
    plan = Plan(tokens=512, pool=tmp_path / "demo.pool", timeout_s=0.2)
    with pytest.raises(WorkerFailed, match="took too long"):
        scenario.run(plan, silent)
    assert list(tmp_path.iterdir()) == []


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    before = leftovers()
    pool = tmp_path / "demo.pool"
    demo = subprocess.Popen([*COMMAND, "--tokens", "512", "--pool", str(pool)])
    try:
        deadline = time.monotonic() + 60
        while not (children := _children(demo.pid)) or not pool.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 128 + signal.SIGTERM
    finally:
        demo.kill()
        demo.wait()
    assert not pool.exists()
    assert not any(Path("/proc", child).exists() for child in children)
    assert leftovers() == before


def test_sigterm_while_an_engine_is_started_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(processes.subprocess, "Popen", Interrupted)
    plan = Plan(tokens=512, pool=tmp_path / "demo.pool")
    with terminable(), pytest.raises(SystemExit):
        scenario.run(plan, silent)
    assert [engine.returncode for engine in started] == [-signal.SIGKILL]
    assert list(tmp_path.iterdir()) == []


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("count", [511, 10**6])
def test_prompt_must_fit_the_text(count: int) -> None:
    with pytest.raises(DemoError, match=f"--tokens must be between 512 and {len(text())}"):
        scenario.run(Plan(tokens=count), silent)


def test_existing_file_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(DemoError, match="name another --pool"):
        scenario.run(Plan(tokens=512, pool=file), silent)
    assert file.read_text() == "data"


def test_full_shared_memory_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(DemoError, match="--shm-size"):
        scenario.run(Plan(tokens=8192, pool=tmp_path / "demo.pool"), silent)


def test_default_pool_fits_docker() -> None:
    assert Plan(tokens=8192).pool_bytes <= 60 << 20, "Docker gives /dev/shm 64 MiB"


def test_text_is_long_ascii() -> None:
    assert len(text()) > 50_000
    assert max(tokens(len(text()))) < 128
    assert bytes(tokens(32)).decode() == "The Constitution of the United S"
    with pytest.raises(ValueError, match="were asked for"):
        tokens(len(text()) + 1)
