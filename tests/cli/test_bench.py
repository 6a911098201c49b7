"""``beluga bench``: runs, verifies what it reads, reports honestly. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lmcache")

from lmcache_beluga.cli import bench_gpu, bench_redis
from lmcache_beluga.cli.bench_hammer_worker import Content
from lmcache_beluga.cli.bench_report import (
    Bar,
    Row,
    Section,
    interleaved,
    median_interval,
    percentile,
    write_json,
)

COMMAND = [sys.executable, "-m", "lmcache_beluga", "bench"]


def run(folder: Path, *arguments: str) -> dict[str, dict]:
    """Sections of a quick run that succeeded, and left nothing behind."""
    results = folder / "results.json"
    shm = folder / "shm"
    shm.mkdir()
    done = subprocess.run(
        [*COMMAND, *arguments, "--quick", "--dir", str(shm), "--json", str(results)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(shm.iterdir()) == []
    document = json.loads(results.read_text())
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["lmcache"]
    assert "bench" in document["command"]
    for section in document["sections"].values():
        assert section["wrong"] == []
        assert section["title"] in done.stdout
        for row in section["rows"]:
            assert row["name"] in done.stdout
            assert (row["holds"] is None) == (row["bar"] is None or row["value"] is None)
    return document["sections"]


def test_lookup_and_copy(tmp_path: Path) -> None:
    sections = run(tmp_path, "lookup", "copy")
    assert list(sections) == ["lookup", "copy"]
    names = {row["name"] for section in sections.values() for row in section["rows"]}
    assert {"native, 10 k", "backend, 100 k", "backend, pinned, 100 k / 10 k"} <= names
    assert {"put 16 MiB / memcpy", "read_into 16 MiB / memcpy", "get 16 MiB by view"} <= names


def test_hammer(tmp_path: Path) -> None:
    section = run(tmp_path, "hammer")["hammer"]
    values = {row["name"]: row["value"] for row in section["rows"]}
    assert values["operations, reads verified"] > 0
    assert values["any operation, worst"] > 0


def test_noncoherent(tmp_path: Path) -> None:
    section = run(tmp_path, "noncoherent")["noncoherent"]
    values = {row["name"]: row["value"] for row in section["rows"]}
    assert all(value > 0 for name, value in values.items() if "one lane line" not in name)
    for hosts in (2, 4, 16):
        assert f"lookup of 512, noncoherent, {hosts} hosts" in values
        assert f"lease of 512 foreign keys, noncoherent, {hosts} hosts" in values
    for how in ("put", "read_into, first", "read_into, again", "reserve, write and commit"):
        for mode in ("coherent", "noncoherent, flush", "noncoherent, direct"):
            assert f"{how}, {mode} / memcpy" in values


def test_engines(tmp_path: Path) -> None:
    sections = run(tmp_path, "engine", "compare")
    names = {row["name"] for row in sections["engine"]["rows"]}
    assert "retrieve, beluga / hot cache" in names
    names = {row["name"] for row in sections["compare"]["rows"]}
    assert {"retrieve, beluga", "retrieve, Redis", "store, DAX"} <= names


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_says_that_it_needs_one(tmp_path: Path) -> None:
    command = [*COMMAND, "gpu", "--quick", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "gpu: the fused copy needs a GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu(tmp_path: Path) -> None:
    rows = run(tmp_path, "gpu")["gpu"]["rows"]
    failed = [row["note"] for row in rows if row["note"].startswith("failed")]
    assert failed == []
    names = {row["name"] for row in rows}
    assert {"H2D 16 KiB, fused kernel", "D2H 4 KiB, fused kernel / one pinned copy"} <= names
    assert {"Qwen-32B: load a block, fused kernel", "GPU load, pool"} <= names


def test_one_part_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*_: object) -> None:
        raise RuntimeError("no such symbol")

    def good(section: Section, *_: object) -> None:
        section.add_value("speed", 50.0, "GB/s")

    monkeypatch.setattr(bench_gpu, "_parts", lambda: [("bad one", bad), ("good", good)])
    monkeypatch.setattr(bench_gpu, "CudaDevice", lambda: SimpleNamespace(index=0))
    monkeypatch.setattr(bench_gpu, "CudaRuntime", lambda index: None)
    monkeypatch.setattr(bench_gpu, "_name", lambda device: "a GPU")
    section = bench_gpu.run(tmp_path, True, lambda what: None)
    assert [(row.name, row.value) for row in section.rows] == [("bad one", None), ("speed", 50.0)]
    assert section.rows[0].note == "failed: RuntimeError: no such symbol"


def test_server(tmp_path: Path) -> None:
    values = {row["name"]: row["value"] for row in run(tmp_path, "server")["server"]["rows"]}
    assert values["retrieve, the server copies: ratio"] > 0
    assert values["99th percentile: ratio"] > 0
    assert values["copied before the transfer"] == 0
    assert values["read from the pool itself"] > 0


def test_unknown_section() -> None:
    done = subprocess.run([*COMMAND, "speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lookup" in done.stderr


def test_interval_of_a_median() -> None:
    """It holds the median of the population in 95 of 100 draws, or a little more."""
    draw = np.random.default_rng(7)
    for count in (15, 25, 75):
        held = 0
        for _ in range(1000):
            low, high = median_interval(list(draw.lognormal(0.0, 1.0, count)))  # median 1
            held += low <= 1.0 <= high
        assert 930 <= held <= 990
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([1.0, 2.0]) == (1.0, 2.0)


def test_percentiles() -> None:
    samples = [float(number) for number in range(1, 1001)]
    assert percentile(samples, 50) == 500
    assert percentile(samples, 99.9) == 999
    assert percentile(samples, 100) == 1000
    assert percentile([7.0], 1) == 7


def test_bars() -> None:
    assert Row("fast", 20, "us", Bar(True, 20)).holds
    assert Row("slow", 20.5, "us", Bar(True, 20)).holds is False
    assert Row("wide", 0.9, "x", Bar(False, 0.85)).holds
    assert Row("unknown", None, "us", Bar(True, 20)).holds is None
    assert Row("free", 1, "us").holds is None
    assert str(Bar(True, 100)) == "<= 100"


def test_rounds_interleave_in_changing_order() -> None:
    order: list[str] = []

    def candidate(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = interleaved(9, {name: lambda name=name: candidate(name) for name in "abc"})
    assert len(order) == 30, "one round is discarded"
    rounds = [tuple(order[start : start + 3]) for start in range(0, 30, 3)]
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "c")}
    assert {names[0] for names in rounds} == set("abc"), "nobody is always behind the same other"
    assert all(len(values) == 9 for values in samples.values())


def test_json_holds_samples(tmp_path: Path) -> None:
    section = Section("Some")
    section.add("time", [3.0, 1.0, 2.0], "ms", Bar(True, 2))
    section.add_value("missing", None, "ms", Bar(True, 2), note="no server")
    write_json(tmp_path / "r.json", {"some": section}, "beluga bench some")
    some = json.loads((tmp_path / "r.json").read_text())["sections"]["some"]
    assert some["samples"] == {"time": [3.0, 1.0, 2.0]}
    assert [row["holds"] for row in some["rows"]] == [True, None]
    assert some["rows"][0]["value"] == 2.0


def test_missing_redis_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "apt install redis-server" in (bench_redis.redis_missing() or "")


def test_hammer_notices_one_wrong_byte() -> None:
    content = Content(4096)
    data = content.of(7).copy()
    assert not content.wrong(7, data)
    assert content.wrong(8, data)
    data[4000] ^= np.uint8(1)
    assert content.wrong(7, data)


def test_l2(tmp_path: Path) -> None:
    section = run(tmp_path, "l2")["l2"]
    values = {row["name"]: row["value"] for row in section["rows"]}
    assert values["load bandwidth, beluga / memcpy"] > 0
    assert values["load, LMCache DAX / beluga"] > 0
    assert values["lookup and lock of 512 keys, beluga"] > 0
