"""``beluga inspect``."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from sample_pool import RECORDS, Run

from lmcache_beluga import Pool
from lmcache_beluga.cli.inspect_tables import tables_of

HEADINGS = ("Pool", "Devices", "Hosts", "Occupancy", "Slot sizes", "Counters")


def test_tables(run: Run, pool_path: Path) -> None:
    result = run("inspect", pool_path)
    assert result.exit_code == 0, result.output
    assert all(heading in result.output for heading in HEADINGS)
    assert str(pool_path) in result.output
    assert f"{len(RECORDS)}, 0 of them in use" in result.output


@pytest.mark.parametrize("width", [80, 160])
def test_tables_fit_the_terminal(pool_path: Path, width: int) -> None:
    with Pool.attach(pool_path) as pool:
        found = pool.inspect()
    found["geometry"]["devices"][0]["path"] = "/dev/dax0.0"
    output = io.StringIO()
    Console(width=width, file=output).print(tables_of(found, width))
    drawn = output.getvalue()
    assert all(heading in drawn for heading in HEADINGS)
    assert "…" not in drawn
    assert max(map(len, drawn.splitlines())) <= width


def test_json(run: Run, pool_path: Path) -> None:
    result = run("inspect", pool_path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["geometry"]["devices"][0]["path"] == str(pool_path)
    assert found["occupancy"]["chunks"] == len(RECORDS)
    assert found["occupancy"]["bytes_used"] == sum(RECORDS.values())
    assert [host["id"] for host in found["hosts"]] == [0]


def test_sees_what_a_process_at_work_does(run: Run, pool_path: Path) -> None:
    with Pool.attach(pool_path) as pool:
        pool.contains([*RECORDS, b"absent"])
        assert pool.pin(next(iter(RECORDS)))
        found = json.loads(run("inspect", pool_path, "--json").stdout)
    assert found["hosts"][0]["processes"] == 2
    assert found["counters"]["misses"] == 1
    assert found["counters"]["hits"] >= len(RECORDS)
    assert found["occupancy"]["leased"] == 1


def test_text_from_the_pool_is_no_markup(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "[red]pool"
    run("format", path, "--size", "64MiB", "--key-scheme", "[bold]scheme[/x]")
    result = run("inspect", path)
    assert result.exit_code == 0, result.output
    assert "[bold]scheme[/x]" in result.output
    assert "[red]pool" in result.output


def test_watch_as_json_prints_lines_until_interrupted(pool_path: Path) -> None:
    # A run of the tests in the background has SIGINT ignored, and so would all its processes.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "lmcache_beluga", "inspect"]
    with subprocess.Popen(
        [*command, str(pool_path), "--watch", "--json", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert {look["geometry"]["uuid"] for look in looks} == {looks[0]["geometry"]["uuid"]}


def test_does_not_create_a_pool(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pool"
    result = run("inspect", path, env={"BELUGA_SIZE": "64MiB"})
    assert result.exit_code == 2
    assert result.stderr.startswith(f"beluga: error: {path}")
    assert result.stderr.count("\n") == 1
    assert not path.exists()


def test_wrong_host_id(run: Run, pool_path: Path) -> None:
    for arguments, environ in ((["--host-id", "1"], {}), ([], {"BELUGA_HOST_ID": "1"})):
        result = run("inspect", pool_path, *arguments, env=environ)
        assert result.exit_code == 2
        assert "host id 1" in result.stderr


def test_not_a_pool(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("not a pool" * 1000)
    result = run("inspect", path)
    assert result.exit_code == 2
    assert f"beluga: error: {path} is not a pool" in result.stderr
