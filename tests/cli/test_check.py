"""``beluga check``."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

from sample_pool import OPAQUE, RECORDS, Run

from lmcache_beluga import Pool


def damage(path: Path, needle: bytes) -> None:
    """Flip a byte of the metadata in the pool's memory."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(needle)
        assert at > 0
        memory[at] ^= 0xFF


def test_clean(run: Run, pool_path: Path) -> None:
    result = run("check", pool_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"clean ({len(RECORDS)} chunks, ")


def test_clean_as_json(run: Run, pool_path: Path) -> None:
    report = json.loads(run("check", pool_path, "--json").stdout)
    assert report["ok"] is True
    assert report["errors"] == []
    assert report["chunks"] == len(RECORDS)


def test_problems(run: Run, pool_path: Path) -> None:
    # In use, so that neither recovery nor the scrubbing of processes at work repairs it first.
    with Pool.attach(pool_path) as pool:
        assert pool.pin(OPAQUE)
        damage(pool_path, OPAQUE)
        result = run("check", pool_path)
        as_json = run("check", pool_path, "--json")
    assert result.exit_code == as_json.exit_code == 1
    assert "its descriptor is damaged" in result.stdout
    assert "problems: 1 (" in result.stdout
    report = json.loads(as_json.stdout)
    assert report["ok"] is False
    assert report["problems"] == 1


def test_cannot_open(run: Run, tmp_path: Path) -> None:
    result = run("check", tmp_path / "pool")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("beluga: error: ")
