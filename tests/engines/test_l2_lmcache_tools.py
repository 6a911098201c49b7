"""LMCache's own checks of adapters and servers, run on ours with their verification on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from l2_harness import create, key, load, lock, memory, payload, spec, store
from lmcache.v1.distributed.l2_adapters import fault_inject_l2_adapter
from server_harness import CHUNKS, SHAPE, Server

TOOL_S = 120

# Registers itself: see l2_harness.
assert fault_inject_l2_adapter


def tool(*arguments: str) -> str:
    """What a Python module of LMCache prints; it must end with status 0."""
    environment = {
        **os.environ,
        "LMCACHE_TRACK_USAGE": "false",
        "LMCACHE_DISABLE_BANNER": "1",
        "LMCACHE_LOG_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
        "PYTHONHASHSEED": "0",
        "COLUMNS": "200",
    }
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=TOOL_S,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


LMCACHE = ("-c", "from lmcache.cli.main import main; main()")


def numbers(text: str, label: str) -> list[float]:
    """The values of all lines ``label: value``."""
    return [float(found) for found in re.findall(rf"{re.escape(label)}:\s+([0-9.]+)", text)]


def test_bench_l2_with_verification(pool: Path) -> None:
    said = tool(
        *(*LMCACHE, "bench", "l2", "--l2-adapter", json.dumps(spec(pool, size="128MiB"))),
        *("--no-skip-verify", "--rounds", "3", "--in-flight", "3", "--num-keys", "16"),
        *("--lookup-max-hit-rate", "0.5"),
    )
    assert numbers(said, "Rounds timed out") == [0, 0, 0]
    stored, found, loaded = numbers(said, "Total success")
    assert (stored, loaded) == (144, 144) and found == 72
    assert "mismatch" not in said.lower()


def test_basic_check(pool: Path) -> None:
    said = tool(
        *("-m", "lmcache.v1.basic_check", "--mode", "test_l2_adapter", "--model", "test"),
        *("--num-keys", "12", "--obj-size", "4096", "--l2-adapter", json.dumps(spec(pool))),
    )
    for line in ("12/12 correctly absent", "12/12 found", "(loaded): 12/12", "(content): 12/12"):
        assert line in said
    assert "Failed" not in said


def test_behind_fault_injection(pool: Path) -> None:
    """LMCache's wrapper drops what was loaded; locks and everything else still come through."""
    faulty = {"type": "fault_inject", "inner": spec(pool), "rate": 0.3, "gap_indices": [0]}
    adapter = create(faulty)
    try:
        keys = [key(n) for n in range(40)]
        assert store(adapter, keys, [payload(n) for n in range(40)]).is_successful()
        assert lock(adapter, keys) == [True] * 40
        objects = [memory() for _ in keys]
        loaded = load(adapter, keys, objects)
        assert not loaded[0] and 10 < sum(loaded) < 40
        for number, (ok, obj) in enumerate(zip(loaded, objects, strict=True)):
            assert not ok or bytes(obj.byte_array) == payload(number)
        adapter.submit_unlock(keys)
        assert adapter.report_status()["locked"] == 0
        adapter.delete(keys)
        assert adapter.get_usage().total_bytes_used == 0
    finally:
        adapter.close()


def bench_server(server: Server, report: Path, *arguments: str) -> dict[str, Any]:
    tool(
        *(*LMCACHE, "bench", "server", "--rpc-url", server.url),
        *("--url", server.http_url, "--mode", "cpu", "--interval", "0"),
        *("--kvcache-shape-spec", SHAPE, "--num-blocks", "256", "--num-tokens", "1023"),
        *("--format", "json", "--output", str(report), *arguments),
    )
    return dict(json.loads(report.read_text())["metrics"]["results"])


def test_bench_server_with_checksums(pool: Path, tmp_path: Path) -> None:
    """Two ranks, two servers on one pool. (It compares nothing where a prompt is there already.)"""
    servers = []
    try:
        for number in range(2):
            servers.append(Server(tmp_path / f"{number}.log", spec(pool, size="128MiB")))
        for number, server in enumerate(servers):
            server.wait()
            prompts = ("--start", str(4 * number), "--end", str(4 * number + 4))
            found = bench_server(server, tmp_path / "report", *prompts, "--tp-size", "2")
            assert (found["checksum_ok"], found["checksum_fail"]) == (4, 0)
            server.settle(4 * CHUNKS * 2 * (number + 1))
    finally:
        for server in servers:
            server.stop()
