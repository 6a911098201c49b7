"""Whole runs of the benchmark, with a vLLM that computes nothing."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from serving import workloads
from serving.backends import BACKENDS, Backend
from serving.backends.remote import Mooncake
from serving.child import Child
from serving.command import serving
from serving.deployment import Deployment
from serving.engine import EngineSetup
from serving.measured import PhaseResult
from serving.request import Phase
from serving.settings import child_environment

SERVING = Path(__file__).parents[2] / "integration" / "benchmarks" / "serving"


class Shared(Backend):
    """Says that instances share what they store."""

    name = "shared"

    def setup(self, instance: int) -> EngineSetup:
        return EngineSetup({"kv_connector": "x"})


class Private(Shared):
    name = "private"
    shared = False


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (Shared, Private):
        monkeypatch.setitem(BACKENDS, backend.name, backend)


@pytest.fixture
def arguments(model: Path, fake_python: str, tmp_path: Path) -> list[str]:
    return [
        *("--model", str(model), "--workloads", "probe", "--lengths", "512", "--repeats", "1"),
        *("--vllm-python", fake_python, "--json", str(tmp_path / "out.json"), "--port", "0"),
        *("--logs", str(tmp_path / "logs"), "--start-s", "60"),
    ]


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(backends: str, *more: str, status: int = 0) -> dict[str, Any]:
        # Names of test backends are not known to the option.
        option = next(o for o in serving.params if o.name == "backends")
        monkeypatch.setattr(option, "callback", lambda ctx, param, value: tuple(value.split(",")))
        result = CliRunner().invoke(serving, [*arguments, "--backends", backends, *more])
        assert result.exit_code == status, result.output
        document: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        return document | {"output": result.output}

    return call


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = set(
        psutil.Process().children(recursive=True)
    )  # of other tests: Python's resource tracker
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


def rows(document: dict[str, Any], backend: str) -> dict[str, PhaseResult]:
    """By phase; every field of the schema, and no other."""
    found = [PhaseResult(**phase) for phase in document["phases"] if phase["backend"] == backend]
    return {f"{row.name}, {row.repeat}": row for row in found}


def test_a_result_has_everything(run: Run) -> None:
    document = run("none,private")
    for key in ("command", "machine", "versions", "settings", "emulated", "phases", "skipped"):
        assert key in document
    assert document["settings"]["kv_bytes_per_token"] == 1024
    assert document["settings"]["lengths"] == [512]
    none, private = rows(document, "none"), rows(document, "private")
    assert list(none) == ["populate 512, 0", "hit 512, 0", "at once 512, 0"] == list(private)
    hit = private["hit 512, 0"]
    assert (hit.prompt_tokens, hit.reused_tokens) == (3 * 512, 3 * 512)
    assert hit.loaded_tokens == 3 * 511, "all but the last token of each prompt"
    assert hit.loaded_bytes == 3 * 511 * 1024
    assert list(hit.cpu_s) == ["vllm"]
    assert hit.flag == ""
    assert [answer["cached_tokens"] for answer in hit.answers] == [511] * 3
    populate = private["populate 512, 0"]
    assert (populate.loaded_tokens, populate.stored_bytes) == (0, 3 * 512 * 1024)
    assert none["hit 512, 0"].loaded_tokens == 0 and none["hit 512, 0"].flag == ""


def test_who_stored_is_asked_where_nothing_is_shared(run: Run) -> None:
    document = run("private,shared")
    private, shared = rows(document, "private"), rows(document, "shared")
    assert (private["hit 512, 0"].instances, private["hit 512, 0"].asked_who_stored) == ([0], True)
    assert (shared["hit 512, 0"].instances, shared["hit 512, 0"].asked_who_stored) == ([1], False)
    assert not private["populate 512, 0"].asked_who_stored


def test_an_instance_that_only_stores_may_have_less_memory(run: Run, tmp_path: Path) -> None:
    sizes = ("--kv-cache-size", "4GiB", "--storing-kv-cache-size", "1GiB")
    run("private,shared", *sizes)
    logs = [path.read_text() for path in sorted((tmp_path / "logs").glob("*/vllm-*.log"))]
    given = [log.split("--kv-cache-memory-bytes ")[1].split()[0] for log in logs]
    assert given == [str(4 << 30), str(1 << 30), str(4 << 30)], "private 0, shared 0, shared 1"


def test_hits_are_repeated_where_something_is_cached(run: Run) -> None:
    document = run("none,private", "--workloads", "documents", "--hits", "3", "--bursts", "0")
    asked: dict[str, list[int]] = {"none": [], "private": []}
    for phase in document["phases"]:
        if phase["name"] in ("populate 512", "all-hit 512"):
            asked[phase["backend"]].append(len(phase["answers"]))
    assert asked == {"none": [3, 3], "private": [3, 3, 3, 3]}, "populate and all-hit of 3 prompts"


def test_backends_that_run_together_take_turns_at_hits(run: Run) -> None:
    """So that what drifts on the machine meets all of them."""
    options = ("--workloads", "documents", "--hits", "2", "--bursts", "0", "--together")
    document = run("private,shared", *options)
    turns = [phase["backend"] for phase in document["phases"] if phase["name"] == "all-hit 512"]
    assert sorted(turns[:2]) == sorted(turns[2:]) == ["private", "shared"]


def test_hits_that_did_not_hit_are_flagged(run: Run) -> None:
    # The instances of the stand-in share nothing, whatever the backend says.
    document = run("shared")
    assert rows(document, "shared")["hit 512, 0"].flag == "hit 0 of 1536 tokens that could be hit"
    assert "FLAG" in document["output"]


def test_hits_where_nothing_was_asked_before_are_flagged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both repetitions have the tokens of the first.
    monkeypatch.setattr(workloads, "probe", partial(_first_probe, workloads.probe))
    document = run("private", "--repeats", "2")
    flags = [row.flag for row in rows(document, "private").values() if "populate" in row.name]
    assert flags == ["", "hit 1533 tokens where 0 had been asked for before"]


def _first_probe(probe: Any, scale: workloads.Scale, repeat: int) -> list[Phase]:
    return list(probe(scale, 0))


def test_missing_software_is_skipped_and_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.backends.remote.shutil.which", lambda name: None)
    document = run("mooncake,none")
    assert document["skipped"] == {"mooncake": Mooncake.missing(None)}  # type: ignore[arg-type]
    assert rows(document, "none") and not rows(document, "mooncake")


def test_a_backend_that_does_not_start_does_not_end_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Shared, "setup", lambda self, i: EngineSetup(environment={"FAKE_VLLM": '{"fails": true}'})
    )
    document = run("shared,none", status=1)
    assert "no GPU today" in document["failed"]["shared"]
    assert rows(document, "none")


def test_an_engine_that_dies_leaves_what_was_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two prompts in the warm-up, each four times; the second that populates is its tenth.
    monkeypatch.setattr(
        Private,
        "setup",
        lambda self, i: EngineSetup(environment={"FAKE_VLLM": '{"dies_after": 9}'}),
    )
    document = run("private", status=1)
    assert "vllm-0 has ended" in document["failed"]["private"]
    assert any("hit 512" in what for what in document["left_out"])
    found = rows(document, "private")
    assert list(found) == ["populate 512, 0"]
    assert "counters cannot be read" in found["populate 512, 0"].flag
    assert [bool(answer["error"]) for answer in found["populate 512, 0"].answers] == [
        *(False, True, True)
    ]


def test_what_does_not_fit_is_left_out_and_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", '{"token_s": 0.05}')
    document = run("private,none", "--limit-s", "12", "--output-tokens", "60")
    assert rows(document, "private").get("at once 512, 0") is None
    told = document["left_out"]
    assert "private: probe, at once 512, repeat 0: the time limit has come" in told
    assert "none: probe, populate 512, repeat 0: the time limit has come" in told


def test_backends_may_take_turns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = Deployment.run

    def noted(self: Deployment, phase: Phase, *more: Any, **options: Any) -> PhaseResult:
        if phase.measured:
            asked.append(f"{self.backend.name} {phase.name}")
        return ask(self, phase, *more, **options)

    monkeypatch.setattr(Deployment, "run", noted)
    fails = EngineSetup(environment={"FAKE_VLLM": '{"fails": true}'})
    monkeypatch.setitem(BACKENDS, "ill", type("Ill", (Backend,), {"setup": lambda self, i: fails}))
    monkeypatch.setattr(BACKENDS["ill"], "name", "ill", raising=False)
    document = run("private,ill,none", "--together", status=1)
    assert asked == [
        *("private populate 512", "none populate 512"),
        *("none hit 512", "private hit 512"),
        *("private at once 512", "none at once 512"),
    ]
    assert list(rows(document, "private")) == list(rows(document, "none"))
    assert "no GPU today" in document["failed"]["ill"]


def test_append_adds_and_replaces(run: Run) -> None:
    first = run("none")
    again = run("private", "--append")
    assert rows(again, "none") == rows(first, "none")
    assert rows(again, "private")
    assert len(again["command"].splitlines()) == 2
    replaced = run("none", "--append")
    assert len(replaced["phases"]) == len(again["phases"])
    assert rows(replaced, "none") != rows(first, "none"), "measured anew"


def test_append_refuses_what_cannot_be_compared(run: Run, tmp_path: Path) -> None:
    run("none")
    before = (tmp_path / "out.json").read_text()
    document = run("none", "--append", "--chunk-size", "128", status=2)
    assert "chunk: 256 there, 128 here" in document["output"]
    assert (tmp_path / "out.json").read_text() == before


def test_a_tier_that_goes_on_storing_is_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()
    # It stores for ten looks, and has stored for the next ten.
    monkeypatch.setattr(
        Private, "progress", lambda self: 10 * ((n := next(looks)) // 20) + min(n % 20, 10)
    )
    document = run("private")
    assert max(row.settled_s for row in rows(document, "private").values()) >= 0.5


def test_prompts_are_the_same_for_all_backends_and_differ_between_repeats(run: Run) -> None:
    document = run("private", "--repeats", "2")
    flags = {name: row.flag for name, row in rows(document, "private").items()}
    assert set(flags.values()) == {""}, "a repeat found what another had stored"


def test_a_run_that_is_told_to_end_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    line = [sys.executable, str(SERVING), *arguments, "--backends", "none"]
    environment = os.environ | {
        "FAKE_VLLM": '{"token_s": 5}',
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if "serves after" in text:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert json.loads((tmp_path / "out.json").read_text())["phases"] == []


def test_cpu_time_counts_all_that_a_process_started(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\n"
    code = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {burn!r}]); "
    line = [sys.executable, "-c", code + "time.sleep(60)"]
    child = Child("burns", "tier", line, tmp_path, child_environment())
    try:
        child.wait_until(lambda: "done" in child.said(), time.monotonic() + 60)
        assert child.cpu_s() >= 0.4  # of 0.5, which the system may round otherwise
    finally:
        child.kill()
    assert not child.alive()
