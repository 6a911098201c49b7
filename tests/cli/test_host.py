"""``beluga host``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_pool import Run

from lmcache_beluga import Pool

TIMES = {"heartbeat_ms": 10, "dead_after_ms": 300, "lease_ms": 2000}
VARIABLES = {
    "BELUGA_HEARTBEAT": "10ms",
    "BELUGA_DEAD_AFTER": "300ms",
    "BELUGA_LEASE": "2s",
}


@pytest.fixture(params=["coherent", "noncoherent"])
def hosts_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "hosts"
    size = {"size": 64 << 20, "extent_size": 4 << 20}
    info = Pool.format(path, max_hosts=4, visibility=request.param, **size)
    yield path
    # A host that was killed leaves its control block behind.
    for control in Path("/dev/shm").glob(f"beluga.{info.uuid.replace('-', '')}.*.ctl"):
        control.unlink()


@pytest.fixture
def killed(hosts_path: Path) -> None:
    """Host 2 has stored ten chunks, and was killed."""
    script = """
import sys, time
from lmcache_beluga import Pool
pool = Pool.attach(sys.argv[1], host_id=2, heartbeat_ms=10, dead_after_ms=300, lease_ms=2000)
pool.put_batch([b"%d" % i for i in range(10)], [bytes(100_000)] * 10)
print("stored", flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(hosts_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stored\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def live(hosts_path: Path) -> Iterator[Pool]:
    """Host 1."""
    with Pool.attach(hosts_path, host_id=1, **TIMES) as pool:
        yield pool


@pytest.mark.usefixtures("killed")
def test_list(run: Run, hosts_path: Path, live: Pool) -> None:
    with Pool.attach(hosts_path, host_id=3, **TIMES):
        pass
    result = run("host", "list", hosts_path)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    one, two, three = (words for words in lines if words and words[0].isdigit())
    assert (one[0], one[2], one[3]) == ("1", "live", "now")
    assert (two[0], two[2]) == ("2", "dead")
    assert re.search("over 3.. ms ago", result.output)
    assert (three[0], three[2]) == ("3", "left")
    told = json.loads(run("host", "list", hosts_path, "--json").stdout)
    assert [(host["id"], host["live"], host["extents"]) for host in told] == [
        (1, True, 0),
        (2, False, 1),
        (3, False, 0),
    ]


def test_list_of_a_new_pool(run: Run, hosts_path: Path) -> None:
    assert json.loads(run("host", "list", hosts_path, "--json").stdout) == []


@pytest.mark.usefixtures("killed")
def test_retire_gives_the_space_back(run: Run, hosts_path: Path, live: Pool) -> None:
    free = live.stats()["extents_free"]
    assert live.contains([b"3"]) == [True]
    result = run("host", "retire", "2", hosts_path, "--yes", "--json", env=VARIABLES)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"host": 2, "retired": True, "chunks": 10, "extents": 1}
    assert live.contains([b"3"]) == [False]
    assert live.stats()["extents_free"] == free + 1
    assert live.check().ok
    again = run("host", "retire", "2", hosts_path)
    assert (again.exit_code, "was retired already" in again.stdout) == (0, True)
    assert "retired" in run("host", "list", hosts_path).output


@pytest.mark.usefixtures("killed")
def test_retire_asks_whether_the_machine_is_off(run: Run, hosts_path: Path) -> None:
    for answer in ("n\n", ""):
        result = run("host", "retire", "2", hosts_path, input=answer, env=VARIABLES)
        assert result.exit_code == 1
        assert "powered off, or cut off from the pool?" in result.stderr
    assert Pool.hosts(hosts_path)[0].state == "member"
    result = run("host", "retire", "2", hosts_path, input="y\n", env=VARIABLES)
    assert result.exit_code == 0, result.output
    assert "host 2 retired; chunks removed: 10, extents freed: 1" in result.stdout


@pytest.mark.usefixtures("killed")
def test_retire_waits_for_readers(run: Run, hosts_path: Path, live: Pool) -> None:
    with live.get(b"4") as view:
        command = ("host", "retire", "2", hosts_path, "--yes", "--timeout", "0.2")
        result = run(*command, env=VARIABLES)
        assert (result.exit_code, "try again" in result.stdout) == (1, True)
        assert view.valid()
    assert run(*command[:-1], "30", env=VARIABLES).exit_code == 0


def test_a_live_host_is_not_retired(run: Run, hosts_path: Path, live: Pool) -> None:
    live.put(b"key", b"x")
    result = run("host", "retire", "1", hosts_path, "--yes", env=VARIABLES)
    assert result.exit_code == 2
    assert "host 1 is alive: stop its engines" in result.stderr
    assert live.contains([b"key"]) == [True]


def test_a_host_that_never_was_is_not_retired(run: Run, hosts_path: Path, live: Pool) -> None:
    result = run("host", "retire", "3", hosts_path, "--yes")
    assert result.exit_code == 2
    assert "host 3 never took part in this pool; hosts: 1" in result.stderr
