"""Traces as JSON lines: what is read, what is refused, and what is generated."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from serving.trace_command import generate_trace
from serving.trace_file import TraceError, TraceRequest, read_trace, write_trace
from serving.trace_generator import TraceShape, generate, reuse_of

GOOD = '{"timestamp": 27, "input_length": 513, "output_length": 52, "hash_ids": [46, 47]}'


def read(path: Path, *lines: str) -> list[TraceRequest]:
    path.write_text("\n".join(lines) + "\n")
    return read_trace(path)


def test_reads_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    found = read(path, GOOD, "", GOOD.replace("27", "27.5"))

    assert found == [
        TraceRequest(27, 513, 52, (46, 47)),
        TraceRequest(27.5, 513, 52, (46, 47)),
    ]
    assert read_trace(path, limit=1) == found[:1]
    assert read_trace(path, skip=1) == found[1:]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "no JSON.*one JSON object a line"),
        ("\x00\xff", "no JSON"),
        ("[1, 2]", "no JSON object"),
        ("17", "no JSON object"),
        (GOOD.replace('"timestamp"', '"time"'), "no timestamp.*the line has time, input_length"),
        (GOOD.replace('"hash_ids"', '"ids"'), "no hash_ids"),
        (GOOD.replace("27", "-1"), "timestamp -1.*from 0 on"),
        (GOOD.replace("27", "NaN"), "timestamp nan"),
        (GOOD.replace("27", "Infinity"), "timestamp inf"),
        (GOOD.replace("27", "true"), "timestamp True"),
        (GOOD.replace("27", "3"), "timestamp 3 is before the last one's, 27.*sort"),
        (GOOD.replace("513", "0"), "input_length 0.*at least 1"),
        (GOOD.replace("513", '"513"'), "input_length '513'"),
        (GOOD.replace("52", "5.2"), "output_length 5.2"),
        (
            GOOD.replace("513", "1025"),
            "2 hash_ids for 1025 tokens.*give one for each 512 tokens, 3",
        ),
        (GOOD.replace("[46, 47]", '["a", "b"]'), "no list of ids"),
        (GOOD.replace("[46, 47]", "4647"), "no list of ids"),
    ],
)
def test_names_a_malformed_line_and_what_to_do(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"

    with pytest.raises(TraceError, match=rf"bad\.jsonl, line 3: .*{says}"):
        read(path, GOOD, "", line)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no requests in 1 lines after the first 0"):
        read(tmp_path / "empty.jsonl", "")


@pytest.mark.parametrize("reuse", [0.0, 0.2, 0.64, 0.9])
def test_generates_the_reuse_that_was_asked_for(tmp_path: Path, reuse: float) -> None:
    trace = generate(TraceShape(requests=600, reuse=reuse), seed=3)
    path = tmp_path / "made.jsonl"
    write_trace(path, trace)

    assert read_trace(path) == trace
    assert reuse_of(trace) == pytest.approx(reuse, abs=0.003)


def test_generates_lengths_and_arrivals(tmp_path: Path) -> None:
    shape = TraceShape(
        requests=2000, seconds=100, input_median=3000, output_median=80, longest=20000
    )
    trace = generate(shape, seed=0)
    times = [request.timestamp for request in trace]

    assert trace[0].timestamp == 0 and times == sorted(times)
    assert times[-1] == pytest.approx(100e3, rel=0.1)
    inputs = [request.input_length for request in trace]
    assert statistics.median(inputs) == pytest.approx(3000, rel=0.1)
    assert max(inputs) == 20000
    assert statistics.median(r.output_length for r in trace) == pytest.approx(80, rel=0.1)


def test_prefixes_make_a_tree() -> None:
    """An id follows the same id wherever it is, and some requests branch off the same one."""
    trace = generate(TraceShape(requests=400, reuse=0.5), seed=1)
    parents: dict[int, int | None] = {}
    children: dict[int, set[int]] = {}
    for request in trace:
        last = None
        for block in request.hash_ids:
            assert parents.setdefault(block, last) == last
            if last is not None:
                children.setdefault(last, set()).add(block)
            last = block
    assert max(map(len, children.values())) > 2


def test_burstiness() -> None:
    def variation(burstiness: float) -> float:
        times = [r.timestamp for r in generate(TraceShape(3000, burstiness=burstiness), seed=5)]
        gaps = [b - a for a, b in pairwise(times)]
        return statistics.stdev(gaps) / statistics.mean(gaps)

    assert variation(0) == pytest.approx(0, abs=0.01)
    assert variation(1) == pytest.approx(1, rel=0.2)
    assert variation(3) == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("bad", [{"reuse": 0.99}, {"reuse": -1}, {"requests": 0}, {"seconds": -1}])
def test_an_impossible_shape_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        TraceShape(**bad)  # type: ignore[arg-type]


def test_command_writes_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    line = [str(path), "--requests", "50", "--reuse", "0.3", "--seed", "7"]
    said = CliRunner().invoke(generate_trace, line)

    assert said.exit_code == 0, said.output
    assert "50 requests" in said.output
    assert list(json.loads(path.read_text().splitlines()[0])) == [
        "timestamp",
        "input_length",
        "output_length",
        "hash_ids",
    ]
    assert read_trace(path) == generate(TraceShape(requests=50, reuse=0.3), seed=7)


@pytest.mark.parametrize(
    ("line", "says"), [(["--reuse", "2"], "reuse 2"), (["--requests", "0"], "requests 0")]
)
def test_command_refuses(tmp_path: Path, line: list[str], says: str) -> None:
    said = CliRunner().invoke(generate_trace, [str(tmp_path / "x"), *line])

    assert said.exit_code == 2 and says in said.output
    assert not (tmp_path / "x").exists()
