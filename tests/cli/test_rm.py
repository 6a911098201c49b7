"""``beluga rm``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import wait_until
from sample_pool import OPAQUE, RECORDS, SIZE, Run

from lmcache_beluga import Pool


def left(path: Path) -> set[bytes]:
    with Pool.attach(path) as pool:
        return {record for record in RECORDS if pool.contains([record])[0]}


def test_by_hash_takes_every_rank(run: Run, pool_path: Path) -> None:
    result = run("rm", pool_path, "11112222", "--yes")
    assert result.exit_code == 0, result.output
    assert result.stdout == "removed 2 chunks\n"
    assert left(pool_path) == set(list(RECORDS)[2:])


def test_by_full_key(run: Run, pool_path: Path) -> None:
    keys = [list(RECORDS)[1].hex(), OPAQUE.hex().upper()]
    result = run("rm", pool_path, *keys, "--yes", "--json")
    assert json.loads(result.stdout) == {"matched": 2, "removed": 2, "asked": 0, "kept": 0}
    assert left(pool_path) == RECORDS.keys() - {list(RECORDS)[1], OPAQUE}


def test_hash_as_ls_shows_it(run: Run, pool_path: Path) -> None:
    for line in run("ls", pool_path).output.splitlines()[1:]:
        if line.endswith("Llama-3.1-8B"):
            run("rm", pool_path, line.split()[0], "--yes")
    assert len(left(pool_path)) == 2


def test_by_model(run: Run, pool_path: Path) -> None:
    result = run("rm", pool_path, "--model", "meta-llama/*", "--yes")
    assert result.stdout == "removed 3 chunks\n"
    assert left(pool_path) == set(list(RECORDS)[3:])


def test_all(run: Run, pool_path: Path) -> None:
    result = run("rm", "--all", "--yes", env={"BELUGA_POOL": str(pool_path)})
    assert result.exit_code == 0, result.output
    assert result.stdout == f"removed {len(RECORDS)} chunks\n"
    assert left(pool_path) == set()
    again = run("rm", pool_path, "--all")
    assert (again.exit_code, again.stdout) == (0, "the pool is empty\n")


def test_asks_first(run: Run, pool_path: Path) -> None:
    for answer in ("n\n", ""):
        result = run("rm", pool_path, "--model", "Qwen*", input=answer)
        assert result.exit_code == 1
        assert "Remove 1 chunk (24.4 KiB)?" in result.stderr
        assert result.stdout == ""
    assert left(pool_path) == set(RECORDS)
    result = run("rm", pool_path, "--model", "Qwen*", input="y\n")
    assert result.stdout == "removed 1 chunk\n"


@pytest.mark.parametrize("what", ["--model", "--all"])
def test_other_hosts_are_asked_for_their_chunks(run: Run, tmp_path: Path, what: str) -> None:
    path = tmp_path / "hosts"
    Pool.format(path, size=SIZE, max_hosts=2, visibility="noncoherent")
    with Pool.attach(path, host_id=1, heartbeat_ms=10) as owner:
        for record in RECORDS:
            owner.put(record, b"x" * 1000)
        chosen = ["--model", "meta-llama/*"] if what == "--model" else ["--all"]
        gone = 3 if what == "--model" else len(RECORDS)
        result = run("rm", path, *chosen, "--yes")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"removed {gone} chunks, {gone} of them by asking their hosts\n"
        wait_until(lambda: sum(owner.contains(list(RECORDS))) == len(RECORDS) - gone)


def test_no_match(run: Run, pool_path: Path) -> None:
    result = run("rm", pool_path, "deadbeef")
    assert (result.exit_code, result.stdout) == (1, "no chunk matches\n")


@pytest.mark.parametrize("what", [(), ("--all", "--model", "x"), ("deadbeef", "--all")])
def test_one_choice_is_needed(run: Run, pool_path: Path, what: tuple[str, ...]) -> None:
    result = run("rm", pool_path, *what)
    assert result.exit_code == 2
    assert "say which chunks to remove: KEYs, or --model, or --all" in result.stderr


def test_a_file_with_the_name_of_a_key_is_a_path(
    run: Run, pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool_path.rename(pool_path.parent / "deadbeef")
    monkeypatch.chdir(pool_path.parent)
    result = run("rm", "deadbeef", "--all", "--yes")
    assert result.stdout == f"removed {len(RECORDS)} chunks\n"


def test_a_chunk_being_read_is_found_no_more(run: Run, pool_path: Path) -> None:
    with Pool.attach(pool_path) as pool:
        assert pool.pin(OPAQUE)
        result = run("rm", pool_path, OPAQUE.hex(), "--yes")
        assert result.stdout == "removed 1 chunk\n"
        assert pool.contains([OPAQUE]) == [False]
