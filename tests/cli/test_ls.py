"""``beluga ls``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sample_pool import OPAQUE, RECORDS, Run, chunk_record

from lmcache_beluga import Pool


def test_one_line_per_chunk(run: Run, pool_path: Path) -> None:
    result = run("ls", pool_path)
    assert result.exit_code == 0, result.output
    heading, *lines = result.output.splitlines()
    assert heading.split() == ["HASH", "RANK", "LAYER", "SIZE", "STATE", "LEASED", "AGE", "MODEL"]
    assert len(lines) == len(RECORDS)
    (qwen,) = [line for line in lines if line.endswith("Qwen/Qwen3-8B")]
    assert qwen.split()[:5] == ["99990000111122", "0", "24.4", "KiB", "ready"]


def test_leased_chunks_are_marked(run: Run, pool_path: Path) -> None:
    with Pool.attach(pool_path) as pool:
        pool.pin(OPAQUE)
        lines = run("ls", pool_path).output.splitlines()
    assert [OPAQUE.hex()[:16]] == [line.split()[0] for line in lines if " yes " in line]


def test_json(run: Run, pool_path: Path) -> None:
    chunks = json.loads(run("ls", pool_path, "--json").stdout)
    assert {bytes.fromhex(chunk["key"]): chunk["size"] for chunk in chunks} == RECORDS
    (qwen,) = [chunk for chunk in chunks if chunk.get("model") == "Qwen/Qwen3-8B"]
    assert qwen["kind"] == "chunk"
    assert qwen["chunk_hash"] == "99990000111122"
    assert qwen["worker_id"] == 0
    assert qwen["state"] == "ready"
    assert qwen["leased"] is False
    assert qwen["depth"] == 3


def test_limit(run: Run, pool_path: Path) -> None:
    assert len(run("ls", pool_path, "--limit", "2").output.splitlines()) == 1 + 2
    assert len(json.loads(run("ls", pool_path, "--limit", "2", "--json").stdout)) == 2
    assert json.loads(run("ls", pool_path, "--limit", "0", "--json").stdout) == []


def test_model(run: Run, pool_path: Path) -> None:
    for pattern, count in (("Qwen/Qwen3-8B", 1), ("meta-llama/*", 3), ("Qwen", 0)):
        chunks = json.loads(run("ls", pool_path, "--model", pattern, "--json").stdout)
        assert len(chunks) == count


def test_long(run: Run, pool_path: Path) -> None:
    heading, *lines = run("ls", pool_path, "--long").output.splitlines()
    assert "HOST EXTENT       SLOT GENERATION DEPTH" in heading
    assert any(line.startswith(OPAQUE.hex()[:64]) for line in lines)


def test_a_models_name_cannot_move_the_cursor(run: Run, pool_path: Path) -> None:
    with Pool.attach(pool_path) as pool:
        pool.put(chunk_record("bad\x1b[2J\nmodel", 0, 7), b"x" * 100)
    result = run("ls", pool_path)
    assert "bad?[2J?model" in result.output


def test_a_reader_that_stops_early_is_no_error(pool_path: Path) -> None:
    with Pool.attach(pool_path) as pool:
        for number in range(3000):
            pool.put(b"chunk %d" % number, b"x" * 100)
    command = [sys.executable, "-m", "lmcache_beluga", "ls", str(pool_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
