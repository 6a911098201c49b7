"""``beluga characterize``: what it measures, says, writes, refuses, and leaves as it was."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sample_pool import Run

from lmcache_beluga import Pool
from lmcache_beluga.cli import characterize as command
from lmcache_beluga.config import SETTINGS

MIB = 1 << 20


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_QUICK_SECONDS", 1.0)


def test_a_folder(run: Run, shm_dir: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = run("characterize", shm_dir, "--quick", "--size", "2MiB", "--json", results)
    assert done.exit_code == 0, done.output
    assert list(shm_dir.iterdir()) == []
    for text in ("not what CXL memory does", "no CXL memory was measured", "beluga.copy_threads"):
        assert text in done.output
    document = json.loads(results.read_text())
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["lmcache-beluga"]
    assert document["command"].startswith("beluga")
    places = {place["name"]: place for place in document["places"]}
    assert places[str(shm_dir)]["kind"] == "tmpfs"
    assert places["local DRAM"]["nbytes"] == 2 * MIB
    found = {(one["place"], one["operation"], one["unit"]) for one in document["figures"]}
    for place in places:
        for operation in ("load", "store"):
            assert (place, operation, "GB/s") in found
            assert (place, operation, "ns") in found
        assert (place, "dependent load", "ns") in found
    assert all(one["value"] > 0 for one in document["figures"] if one["unit"] == "GB/s")
    names = {setting.key for setting in SETTINGS}
    advised = {one["setting"] for one in document["recommendations"]}
    assert "beluga.copy_threads" in advised
    assert advised - {None} <= names


def test_a_pool_keeps_its_chunks(run: Run, shm_dir: Path) -> None:
    path = shm_dir / "pool"
    with Pool.open(path, size=64 * MIB) as pool:
        pool.put(b"chunk", b"\x05" * 100_000)
    done = run("characterize", path, "--quick", "--size", "2MiB", "--no-gpu")
    assert done.exit_code == 0, done.output
    with Pool.attach(path) as pool:
        assert bytes(pool.get(b"chunk").array) == b"\x05" * 100_000
        assert pool.stats()["chunks"] == 1
        assert pool.check().ok


def test_two_devices_are_measured_together(run: Run, shm_dir: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    paths = [shm_dir / "a", shm_dir / "b"]
    Pool.format(paths, size=32 * MIB)
    arguments = ("--quick", "--size", "1MiB", "--no-gpu", "--json", results)
    done = run("characterize", *paths, *arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(results.read_text())
    assert "all devices in turn" in {one["place"] for one in document["figures"]}
    assert "Interleaving" in {one["subject"] for one in document["recommendations"]}


def test_a_full_pool_is_said(run: Run, shm_dir: Path) -> None:
    path = shm_dir / "pool"
    with Pool.open(path, size=32 * MIB, extent_size=2 * MIB) as pool:
        number = 0
        while pool.stats()["evictions"] == 0 and number < 1000:
            pool.put(b"%d" % number, bytes(200_000))
            number += 1
        before = pool.stats()["chunks"]
        done = run("characterize", path, "--quick", "--size", "1MiB", "--no-gpu")
        assert done.exit_code == 0, done.output
        assert "was not measured" in done.output
        assert pool.stats()["chunks"] == before


def test_what_is_no_pool_is_refused_untouched(run: Run, shm_dir: Path) -> None:
    path = shm_dir / "precious"
    path.write_bytes(b"precious" * 1000)
    before = hashlib.sha256(path.read_bytes()).digest()
    for flags in ((), ("--raw-device",)):
        done = run("characterize", path, "--quick", *flags)
        assert done.exit_code == 2
        assert "no pool" in done.output
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_half_of_a_pool_is_refused(run: Run, shm_dir: Path) -> None:
    paths = [shm_dir / "a", shm_dir / "b"]
    Pool.format(paths, size=32 * MIB)
    for path in paths:
        done = run("characterize", path, "--quick", "--raw-device")
        assert done.exit_code == 2, done.output


def test_sizes(run: Run, shm_dir: Path) -> None:
    for size in ("4KiB", "much", "2TiB"):
        assert run("characterize", shm_dir, "--size", size).exit_code == 2


def test_a_picture(run: Run, shm_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plot.png"
    done = run("characterize", shm_dir, "--quick", "--size", "1MiB", "--plot", picture)
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_extra_is_named_before_anything_is_measured(shm_dir: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from lmcache_beluga.cli import main\n"
        f"sys.argv = ['beluga', 'characterize', {str(shm_dir)!r}, '--plot', 'x.png']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "lmcache-beluga[characterize]" in done.stderr
    assert done.stdout == ""
