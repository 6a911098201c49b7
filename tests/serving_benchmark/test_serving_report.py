"""The serving benchmark's report says what was measured, and of what it cannot be sure."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic
from click.testing import CliRunner
from serving.measured import PhaseResult
from serving.report_bars import Bar, bars
from serving.report_command import report
from serving.report_headline import comparisons
from serving.report_markdown import markdown, verdicts
from serving.report_results import ReportError, Results, read_results
from serving.report_rows import Row, Rows
from serving.verdict import Kind
from synthetic import PER_TOKEN, phase


def only(rows: Rows) -> Row:
    (row,) = rows
    return row


def results(tmp_path: Path, *phases: PhaseResult, **more: Any) -> Results:
    (one,) = read_results([synthetic.write(tmp_path / "out.json", phases, **more)])
    return one


def test_medians_are_over_repeats_and_p99_over_all_requests() -> None:
    slow = phase("cpu", "x", [0.4, 0.5, 9.0], repeat=2)
    row = only(Rows([phase("cpu", "x", [0.1, 0.2, 0.3]), phase("cpu", "x", [0.2, 0.3, 1.0]), slow]))

    assert row.ttft_p50 == 0.3  # of 0.2, 0.3, 0.5
    assert (row.ttft_p50_low, row.ttft_p50_high) == (0.2, 0.5)
    assert row.ttft_mean == pytest.approx(0.5)  # of 0.2, 0.5, 3.3
    assert row.ttft_p99 == pytest.approx(8.36)  # 0.92 of the way from 1.0 to 9.0
    assert len(row.ttft) == 9


def test_rates_bytes_cpu_and_hits() -> None:
    made = phase(
        "beluga-mp", "x", [1.0] * 4, tokens=1000, hit=0.5, reuse=0.5, at_once=True, tpot=0.125
    )
    row = only(Rows([made]))

    assert made.wall_s == 1.875
    assert row.requests_per_s == pytest.approx(4 / 1.875)
    assert row.tokens_per_s == pytest.approx(4 * 1008 / 1.875)
    assert row.tpot_s == pytest.approx(0.125)
    assert row.loaded_bytes == row.stored_bytes == 2000 * PER_TOKEN
    assert row.cpu_s == 8.5 and row.cpu_by == {"vllm": 8.0, "lmcache": 0.5}
    assert row.hit == 0.5 and row.reuse == 0.5
    assert row.flags == []


def test_failed_requests_are_left_out_of_times() -> None:
    made = phase("cpu", "x", [1.0, 1.0, 1.0], at_once=True)
    failed = replace(made.answers[0], ttft_s=0.0, end_s=0.0, error="status 500")
    row = only(Rows([replace(made, answers=[failed, *made.answers[1:]])]))

    assert row.ttft == [1.0, 1.0]
    assert row.requests_per_s == pytest.approx(2 / made.wall_s)


def test_a_phase_without_any_answer_has_a_row() -> None:
    made = phase("redis", "x", [1.0])
    failed = [replace(made.answers[0], error="no")]
    row = only(Rows([replace(made, answers=failed)]))

    assert row.ttft_p50 is None and row.ttft_p99 is None and row.tpot_s is None
    assert row.requests_per_s == 0
    assert "| x | redis | - | - | - |" in "\n".join(
        markdown([Results(["f"], {}, {}, {}, phases=[replace(made, answers=failed)])]).splitlines()
    )


def test_flags_of_the_run_are_told_once() -> None:
    made = [
        phase("cpu", "x", [1.0], repeat=n, flag="hit 0 of 9", asked_who_stored=True)
        for n in range(3)
    ]
    assert only(Rows(made)).flags == ["hit 0 of 9", "asked the instance that stored"]


def test_a_decoding_request_is_no_hit() -> None:
    made = phase("cpu", "decode while 4 x 32K load", [0.05, 0.5, 0.7], output_tokens=3, tpot=0.5)
    decoding = replace(made.answers[0], longest_gap_s=0.4, end_s=0.09)
    made = replace(made, axes={"decodes": 1.0}, answers=[decoding, *made.answers[1:]])
    row = only(Rows([made]))

    assert row.ttft == [0.5, 0.7]
    assert row.longest_gap_s == 0.4
    assert row.tpot_s == pytest.approx(0.02)
    assert "longest gap ms" in markdown([Results(["f"], {}, {}, {}, phases=[made])])


def test_rows_keep_the_order_of_phases_and_backends() -> None:
    made = [
        phase(backend, name, [1.0])
        for backend in ("mine", "redis", "beluga", "none")
        for name in ("populate 8K", "all-hit 8K")
    ]
    assert [(row.name, row.backend) for row in Rows(made)] == [
        (name, backend)
        for name in ("populate 8K", "all-hit 8K")
        for backend in ("none", "beluga", "redis", "mine")
    ]


# The headline


def headline(pool: float, tier: float, **more: Any) -> tuple[bool | None, bool | None]:
    made = [phase("beluga", "x", [pool] * 8, **more), phase("redis", "x", [tier] * 8, **more)]
    (found,) = comparisons(Rows(made))
    return found.ttft_holds, found.throughput_holds


def test_all_hit_ttft_is_held_to_the_paper() -> None:
    assert headline(0.104, 1.0, reuse=1.0) == (True, None)
    assert headline(0.105, 1.0, reuse=1.0) == (False, None)


def test_throughput_of_bursts_is_held_to_the_paper() -> None:
    burst = {"reuse": 1.0, "at_once": True, "output_tokens": 1}
    assert headline(1.0, 7.36, **burst) == (None, True)
    assert headline(1.0, 7.34, **burst) == (None, False)


def test_where_the_paper_claims_nothing_rows_stand_all_the_same() -> None:
    assert headline(1.0, 1.0, reuse=0.1, workload="reuse") == (None, None)
    assert headline(0.01, 1.0, reuse=1.0, workload="reuse") == (None, None)
    made = synthetic.plausible()
    names = {(one.pool.name, one.pool.backend, one.tier.backend) for one in comparisons(Rows(made))}
    for pool in ("beluga", "beluga-mp"):
        for tier in ("redis", "mooncake"):
            for name in ("populate 32K", "all-hit 32K", "reuse 0 % of 32K", "reuse 10 % of 32K"):
                assert (name, pool, tier) in names


# Bars


def bar(found: list[Bar], what: str) -> Bar:
    (one,) = [one for one in found if one.what == what]
    return one


@pytest.mark.parametrize(("pool", "private"), [("beluga", "cpu"), ("beluga-mp", "lmcache-mp")])
def test_hits_are_held_to_private_memory(pool: str, private: str) -> None:
    def held(mine: float) -> Bar:
        made = [phase(pool, "all-hit 8K", [mine] * 3, hit=1.0, reuse=1.0)]
        made += [phase(private, "all-hit 8K", [0.5, 0.5, 0.6], hit=1.0, reuse=1.0)]
        return bar(bars(Rows(made), None, None), f"all-hit TTFT: {pool} / {private}")

    assert held(0.5).holds is True
    assert held(0.51).holds is False
    assert held(0.51).value == "1.020x (510.0 / 500.0 ms)"
    assert held(0.51).note == "within the spread"
    assert held(0.7).note == ""


def test_populating_is_held_to_not_storing() -> None:
    def held(backend: str, time: float, cpu: float = 1.1) -> tuple[bool | None, str]:
        made = [phase("none", "populate 8K", [1.0] * 3), phase("cpu", "populate 8K", [cpu] * 3)]
        made += [phase(backend, "populate 8K", [time] * 3)]
        found = bars(Rows(made), None, None)
        p50, p99 = (bar(found, f"populate TTFT, {p}: {backend} above none") for p in ("p50", "p99"))
        assert p50.holds == p99.holds
        return p50.holds, p50.value

    assert held("beluga-mp", 1.01) == (True, "+1.0 %")
    assert held("beluga-mp", 1.02) == (False, "+2.0 %")
    assert held("beluga", 1.09) == (True, "+9.0 %")
    assert held("beluga", 1.2) == (False, "+20.0 %")


def test_nothing_reused_is_held_to_lmcache_alone() -> None:
    made = [
        phase(name, "reuse 0 % of 32K", [time], workload="reuse", reuse=0.0)
        for name, time in (("cpu", 1.0), ("lmcache-mp", 0.9), ("beluga", 1.01), ("beluga-mp", 0.95))
    ]
    found = bars(Rows(made), None, None)

    assert bar(found, "TTFT without reuse: beluga / cpu").holds is True
    assert bar(found, "TTFT without reuse: beluga-mp / lmcache-mp").holds is False
    assert bar(found, "TTFT without reuse: beluga-mp / cpu").holds is True


def test_bus_floor_and_use() -> None:
    gib_s = 32768 * PER_TOKEN / 1e9  # of one prompt in a second
    hit = {"hit": 1.0, "reuse": 1.0}
    made = [
        phase("beluga-mp", "all-hit 32K", [1.2], **hit),
        # The eighth has its first token after 10 s: eight prompts in that time.
        phase("beluga-mp", "burst 8", [1.0] * 7 + [10.0], at_once=True, **hit),
        phase("cpu", "burst 8", [8.0] * 8, at_once=True, **hit),
    ]
    found = bars(Rows(made), PER_TOKEN, gib_s)

    floor = bar(found, "all-hit TTFT, as a multiple of the bus floor: beluga-mp")
    assert floor.value == "1.20x of 1000.0 ms" and floor.holds is True
    use = bar(found, "bus use: beluga-mp")
    assert use.value == "80.0 %" and use.holds is False
    assert bar(found, "bus use: cpu").value == "100.0 %"
    assert bar(found, "bus use: cpu").holds is None
    assert not [one for one in bars(Rows(made), PER_TOKEN, None) if "bus" in one.what]


@pytest.mark.parametrize("backend", ["cpu", "beluga"])
def test_hits_faster_than_the_bus_are_no_hits(backend: str) -> None:
    """LMCache in process has been seen to load nothing, and to count it as loaded."""
    found = bars(
        Rows([phase(backend, "all-hit 32K", [0.4], hit=1.0, reuse=1.0)]),
        PER_TOKEN,
        32768 * PER_TOKEN / 1e9,
    )
    floor = bar(found, f"all-hit TTFT, as a multiple of the bus floor: {backend}")
    assert floor.holds is False
    assert "not everything was loaded" in floor.note


def test_bus_use_of_two_repetitions_is_between_them() -> None:
    made = [
        phase("beluga-mp", "burst 8", [took] * 8, at_once=True, hit=1.0, reuse=1.0, repeat=repeat)
        for repeat, took in enumerate((8.0, 10.0))
    ]
    found = bars(Rows(made), PER_TOKEN, 32768 * PER_TOKEN / 1e9)
    assert bar(found, "bus use: beluga-mp").value == "90.0 %"


# Files


def test_repeats_in_several_files_are_put_together(tmp_path: Path) -> None:
    first = synthetic.write(tmp_path / "a.json", [phase("cpu", "x", [1.0])])
    second = synthetic.write(
        tmp_path / "b.json", [phase("cpu", "x", [3.0]), phase("redis", "x", [9.0])]
    )
    (one,) = read_results([first, second])

    rows = Rows(one.phases)
    assert rows.backends == ["cpu", "redis"]
    row = rows.get("documents", "x", "cpu")
    assert row is not None and row.ttft == [1.0, 3.0]


def test_what_one_file_lacks_another_may_have(tmp_path: Path) -> None:
    first = synthetic.write(
        tmp_path / "a.json", [phase("cpu", "x", [1.0])], skipped={"redis": "no redis", "dax": "no"}
    )
    second = synthetic.write(tmp_path / "b.json", [phase("redis", "x", [9.0])])
    (one,) = read_results([first, second])

    assert one.skipped == {"dax": "no"}


def test_other_machines_and_models_have_tables_of_their_own(tmp_path: Path) -> None:
    made = [phase("cpu", "x", [1.0])]
    files = [synthetic.write(tmp_path / f"{n}.json", made) for n in range(3)]
    for path, part, key in ((files[1], "settings", "model"), (files[2], "machine", "cpu")):
        document = json.loads(path.read_text())
        document[part][key] = "another"
        path.write_text(json.dumps(document))
    found = read_results(files)

    assert len(found) == 3
    text = markdown(found)
    assert "Measurement 3 of 3" in text
    assert "Model: another" in text and "cores of another" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "is no result file"),
        ("{}", "has no 'machine'"),
        (json.dumps(synthetic.document([])), "has no phases: nothing was measured"),
        (json.dumps(synthetic.document([]) | {"phases": [{"answers": []}]}), "is no result file"),
        (json.dumps(synthetic.document([]) | {"phases": [3]}), "is no result file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)

    with pytest.raises(ReportError, match=f"bad.json {re.escape(says)}"):
        read_results([path])


def test_later_versions_may_say_more(tmp_path: Path) -> None:
    document = synthetic.document([phase("cpu", "x", [1.0])])
    document["phases"][0]["news"] = 1
    document["phases"][0]["answers"][0]["news"] = 1
    path = tmp_path / "new.json"
    path.write_text(json.dumps(document))

    assert len(read_results([path])[0].phases) == 1


# Markdown

GOLDEN = """\
# Serving benchmark

- Machine: 1 x Imagined GPU, 16 cores of Imagined 9000, 128 GiB of memory; kernel 6.1
- Model: llama, 128 KiB of KV per token
- Versions: python 3.12.3, vllm 0.25.1, lmcache 0.5.6
- Emulated: beluga: the pool lies on tmpfs
- Skipped: mooncake: no mooncake_master
- Command: `python integration/benchmarks/serving --json out.json`

## From which reuse ratio on each backend beats recomputing here

- **beluga**, prompts of 32K tokens: from about 20 % on (slower at 0 %; faster at 100 %); \
no spread is known of 1 samples each

## Against remote tiers

The paper's headline, of hits: TTFT 89.6 % lower, throughput 7.35x. All phases are listed; \
where the paper claims nothing is a dash.

- **beluga** against redis: all-hit TTFT lower by 98.0 %: holds; throughput of bursts - \
(not measured)

| workload | phase | pool | tier | pool's TTFT ms | tier's | lower by | >= 89.6 % | throughput \
| >= 7.35x | notes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| documents | all-hit 32K | beluga | redis | 200 | 10,000 | 98.0 % | holds | 37.50x | - \
| redis: hit 0 of 32768 tokens that could be hit |

## Everything that was measured

Medians over repetitions; p99 is over the requests of all of them, and near the slowest where \
these are fewer than a hundred. Tokens/s counts prompts and answers. CPU seconds are those of all \
processes but the client. Hit: tokens that were loaded; reuse: tokens that an earlier request had; \
both of all tokens of prompts.

### reuse

| phase | backend | TTFT ms mean | p50 (of repeats) | p99 | TPOT ms | requests/s | tokens/s \
| stored GiB | loaded GiB | CPU s | hit | reuse | flags |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| reuse 0 % of 32K | none | 1,000 | 1,000 | 1,000 | 10.0 | 0.93 | 30,632 | 0.00 | 0.00 | 2.00 \
| 0 % | 0 % |  |
| reuse 0 % of 32K | beluga | 1,200 | 1,200 | 1,200 | 10.0 | 0.79 | 25,808 | 4.00 | 0.00 | 2.00 \
| 0 % | 0 % |  |
| reuse 100 % of 32K | none | 1,000 | 1,000 | 1,000 | 10.0 | 0.93 | 30,632 | 0.00 | 0.00 | 2.00 \
| 0 % | 100 % |  |
| reuse 100 % of 32K | beluga | 200 | 200 | 200 | 10.0 | 3.70 | 121,393 | 0.00 | 4.00 | 2.00 \
| 100 % | 100 % |  |

### documents

| phase | backend | TTFT ms mean | p50 (of repeats) | p99 | TPOT ms | requests/s | tokens/s \
| stored GiB | loaded GiB | CPU s | hit | reuse | flags |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| all-hit 32K | beluga | 200 | 200 (180-220) | 220 | 10.0 | 3.72 | 122,062 | 0.00 | 4.00 | 2.00 \
| 100 % | 100 % |  |
| all-hit 32K | redis | 10,000 | 10,000 | 10,000 | 10.0 | 0.10 | 3,255 | 4.00 | 0.00 | 2.00 | 0 % \
| 100 % | hit 0 of 32768 tokens that could be hit |
"""


def test_markdown(tmp_path: Path) -> None:
    def reuse(backend: str, ratio: float, time: float) -> PhaseResult:
        name, hit = f"reuse {ratio * 100:g} % of 32K", ratio * (backend != "none")
        return phase(backend, name, [time], workload="reuse", reuse=ratio, hit=hit)

    made = [reuse("none", ratio, 1.0) for ratio in (0, 1)]
    made += [reuse("beluga", 0, 1.2), reuse("beluga", 1, 0.2)]
    made += [
        phase("beluga", "all-hit 32K", [time], hit=1.0, reuse=1.0, repeat=n)
        for n, time in enumerate((0.18, 0.22))
    ]
    missed = "hit 0 of 32768 tokens that could be hit"
    made += [phase("redis", "all-hit 32K", [10.0], reuse=1.0, flag=missed)]
    one = results(tmp_path, *made, skipped={"mooncake": "no mooncake_master"})

    assert markdown([one]).splitlines() == GOLDEN.splitlines()


def test_all_tables_are_whole(tmp_path: Path) -> None:
    """As many cells in each line as in the one above, whatever texts have in them."""
    made = [
        *synthetic.plausible(("none", "beluga", "redis"), repeats=1),
        phase("redis", "y", [1.0], flag="a | b\nc"),
    ]
    text = markdown([results(tmp_path, *made)], bus_gbps=55.4)
    last = None
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert last is None or cells is None or cells == last, line
        last = cells
    assert "a \\| b c" in text


def test_conditions_are_told(tmp_path: Path) -> None:
    text = markdown(
        [
            results(
                tmp_path,
                phase("cpu", "x", [1.0]),
                failed={"dax": "no\nway"},
                left_out=[f"redis: phase {n}" for n in range(5)],
            )
        ]
    )
    assert "- Failed: dax: no way\n" in text
    assert (
        "- Left out: 5 phases: redis: phase 0; redis: phase 1; redis: phase 2; and 2 more" in text
    )


def test_verdicts_are_by_backend_and_length() -> None:
    made = synthetic.plausible()
    found = {backend: said.kind for backend, tokens, said in verdicts(Rows(made))}

    assert found["redis"] is Kind.NEVER
    assert found["beluga"] is found["dax"] is Kind.FROM
    assert "none" not in found


# The command


def run(*line: str | Path) -> Any:
    return CliRunner().invoke(report, [str(part) for part in line])


def test_command_writes_everything(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path / "out.json", synthetic.plausible(repeats=1))
    said = run(path, "--markdown", tmp_path / "r.md", "--plots", tmp_path / "p", "--bus-gbps", "50")

    assert said.exit_code == 0, said.output
    assert (tmp_path / "r.md").read_text().startswith("# Serving benchmark")
    names = ["throughput-by-concurrency", "trace-ttft", "ttft-by-length", "ttft-by-reuse"]
    assert sorted(one.name for one in (tmp_path / "p").iterdir()) == [f"{n}.png" for n in names]
    for name in names:
        assert str(tmp_path / "p" / f"{name}.png") in said.output
        data = (tmp_path / "p" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 20_000


def test_command_prints_without_a_file(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path / "out.json", [phase("cpu", "x", [1.0])])
    said = run(path)

    assert said.output == markdown(read_results([path]))


def test_plots_of_what_was_measured_alone(tmp_path: Path) -> None:
    made = [phase("none", "populate 8K", [1.0]), phase("unknown", "populate 8K", [2.0])]
    said = run(synthetic.write(tmp_path / "out.json", made), "--plots", tmp_path)

    assert said.exit_code == 0, said.output
    assert [one.name for one in tmp_path.glob("*.png")] == ["ttft-by-length.png"]


def test_command_names_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text("{}")

    said = run(path)
    assert said.exit_code == 2 and "bad.json has no 'machine'" in said.output
    said = run(tmp_path / "absent.json")
    assert said.exit_code == 1 and "absent.json" in said.output


def test_command_says_what_plots_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = synthetic.write(tmp_path / "out.json", [phase("none", "populate 8K", [1.0])])
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    # None: Python finds no such module. Typeshed knows only modules there.
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]

    said = run(path, "--plots", tmp_path)
    assert said.exit_code == 1 and "pip install 'lmcache-beluga[characterize]'" in said.output
