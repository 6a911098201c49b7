"""``beluga format``."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from sample_pool import SIZE, Run

from lmcache_beluga import Pool


def test_creates_a_pool(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pool"
    result = run("format", path, "--size", "64MiB")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"formatted {path}: 64 MiB, ")
    with Pool.attach(path) as pool:
        assert pool.uuid in result.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_options_reach_the_pool(run: Run, tmp_path: Path) -> None:
    paths = (tmp_path / "a", tmp_path / "b")
    options = "--size 64MiB --extent-size 2MiB --max-hosts 3 --mode 0640 --key-scheme s --json"
    result = run("format", *paths, *options.split())
    assert result.exit_code == 0, result.output
    info = json.loads(result.stdout)
    assert info["extent_size"] == 2 << 20
    assert info["max_hosts"] == 3
    assert info["key_scheme"] == "s"
    assert [(d["path"], d["size"]) for d in info["devices"]] == [(str(p), SIZE) for p in paths]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o640}


def test_visibility_is_shown(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pool"
    how = ("--visibility", "noncoherent", "--payload-visibility", "direct")
    result = run("format", path, "--size", "64MiB", *how, "--json")
    info = json.loads(result.stdout)
    assert (info["visibility"], info["payload_visibility"]) == ("noncoherent", "direct")
    assert "noncoherent, payload direct" in run("inspect", path).output
    with Pool.attach(path) as pool:
        pool.put(b"key", b"payload")
        assert pool.get(b"key").array.tobytes() == b"payload"


def test_the_environment_gives_defaults(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pool"
    environ = {"BELUGA_POOL": str(path), "BELUGA_SIZE": "64MiB", "BELUGA_MAX_HOSTS": "2"}
    result = run("format", "--max-hosts", "4", "--json", env=environ)
    assert result.exit_code == 0, result.output
    info = json.loads(result.stdout)
    assert info["devices"][0]["size"] == SIZE
    assert info["max_hosts"] == 4


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("--size", "lots", "give a size such as 64GiB"),
        ("--max-hosts", "65", "give a whole number from 1 to 64"),
        ("--mode", "0777", "give an octal file mode in quotes such as '0600'"),
        ("--visibility", "some", "give coherent or noncoherent"),
        ("--payload-visibility", "some", "give flush or direct"),
    ],
)
def test_malformed_options(
    run: Run, tmp_path: Path, option: str, value: str, accepted: str
) -> None:
    result = run("format", tmp_path / "pool", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr
    assert accepted in result.stderr


def test_leaves_other_files_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("chapter one\n" * 1000)
    before = path.read_bytes()
    result = run("format", path, "--size", "64MiB", "--force")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"beluga: error: {path} ")
    assert path.read_bytes() == before


def test_a_pool_in_use_needs_force(run: Run, pool_path: Path) -> None:
    with Pool.attach(pool_path, heartbeat_ms=10, dead_after_ms=50):
        result = run("format", pool_path)
        assert result.exit_code == 2
        assert result.stderr.startswith("beluga: error: ")
        assert "--force" in result.stderr
