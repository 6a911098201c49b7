"""The report as Markdown: conditions, verdict, comparisons, and every row that was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .report_backends import POOLS, RECOMPUTE
from .report_bars import bars
from .report_headline import THROUGHPUT, TTFT_LOWER, Comparison, comparisons
from .report_results import Results
from .report_rows import Row, Rows
from .verdict import Verdict, verdict
from .workload_document_set import length_name

_GIB = 1 << 30


def markdown(results: Sequence[Results], bus_gbps: float | None = None) -> str:
    """One document; machines or settings that differ have sections of their own."""
    parts = ["# Serving benchmark", ""]
    for number, one in enumerate(results, 1):
        if len(results) > 1:
            parts += [f"# Measurement {number} of {len(results)}", ""]
        parts += [*_conditions(one), *_findings(one, bus_gbps), *_tables(Rows(one.phases))]
    return "\n".join(parts).rstrip() + "\n"


def verdicts(rows: Rows) -> list[tuple[str, float, Verdict]]:
    """Backend, tokens of a prompt, and from which reuse on the backend beats recomputing."""
    found = []
    times: dict[tuple[str, float], dict[float, list[float]]] = {}
    for row in rows.of(workload="reuse"):
        if "reuse" in row.axes:
            key = (row.backend, row.axes.get("tokens", 0.0))
            times.setdefault(key, {})[row.axes["reuse"]] = row.ttft
    for (backend, tokens), mine in times.items():
        if backend != RECOMPUTE:
            found.append((backend, tokens, verdict(mine, times.get((RECOMPUTE, tokens), {}))))
    return found


def _conditions(results: Results) -> list[str]:
    machine = results.machine
    gpus = machine.get("gpus") or ([machine["gpu"]] if machine.get("gpu") else [])
    memory = machine.get("memory_bytes")
    where = [
        f"{len(gpus)} x {gpus[0]}" if gpus else "no GPU",
        f"{machine.get('cores', '?')} cores of {machine.get('cpu', 'an unknown CPU')}",
    ]
    where += [f"{memory / _GIB:.0f} GiB of memory"] if memory else []
    model = str(results.settings.get("model", "unknown"))
    per_token = results.bytes_per_token
    kv = f", {per_token / 1024:g} KiB of KV per token" if per_token else ""
    lines = [
        f"- Machine: {', '.join(where)}; kernel {machine.get('kernel', 'unknown')}",
        f"- Model: {Path(model).name}{kv}",
        "- Versions: "
        + ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "- Emulated: " + ("; ".join(results.emulated) or "nothing"),
    ]
    for what, entries in (("Skipped", results.skipped), ("Failed", results.failed)):
        lines += [f"- {what}: {name}: {_line(why)}" for name, why in entries.items()]
    if results.left_out:
        lines.append(f"- Left out: {len(results.left_out)} phases: {_shortened(results.left_out)}")
    lines += [f"- Command: `{command}`" for command in results.commands]
    return [*lines, ""]


def _findings(results: Results, bus_gbps: float | None) -> list[str]:
    rows = Rows(results.phases)
    return [
        *_reuse(rows),
        *_against_remote(comparisons(rows)),
        *_bars(rows, results.bytes_per_token, bus_gbps),
    ]


def _reuse(rows: Rows) -> list[str]:
    found = verdicts(rows)
    if not found:
        return []
    lines = ["## From which reuse ratio on each backend beats recomputing here", ""]
    for backend, tokens, said in found:
        flags = dict.fromkeys(f for row in rows.of(backend, workload="reuse") for f in row.flags)
        noted = f"; note: {_shortened(list(flags))}" if flags else ""
        lines.append(f"- **{backend}**, prompts of {length_name(tokens)} tokens: {said}{noted}")
    return [*lines, ""]


def _against_remote(found: Sequence[Comparison]) -> list[str]:
    if not found:
        return []
    lines = [
        "## Against remote tiers",
        "",
        f"The paper's headline, of hits: TTFT {_tenths(TTFT_LOWER)} lower, throughput "
        f"{THROUGHPUT:g}x. All phases are listed; where the paper claims nothing is a dash.",
        "",
    ]
    for pool in POOLS:
        lines += _summary(pool, [one for one in found if one.pool.backend == pool])
    table = [
        [
            one.pool.workload,
            one.pool.name,
            one.pool.backend,
            one.tier.backend,
            _ms(one.pool.ttft_p50),
            _ms(one.tier.ttft_p50),
            "-" if one.lower is None else _tenths(one.lower),
            _holds(one.ttft_holds),
            "-" if one.throughput is None else f"{one.throughput:.2f}x",
            _holds(one.throughput_holds),
            "; ".join(one.pool.flags + [f"{one.tier.backend}: {f}" for f in one.tier.flags]),
        ]
        for one in found
    ]
    head = ["workload", "phase", "pool", "tier", "pool's TTFT ms", "tier's", "lower by"]
    head += [f">= {_tenths(TTFT_LOWER)}", "throughput", f">= {THROUGHPUT:g}x", "notes"]
    return [*lines, *_table(head, table), ""]


def _summary(pool: str, found: Sequence[Comparison]) -> list[str]:
    lines = []
    for tier in dict.fromkeys(one.tier.backend for one in found):
        of = [one for one in found if one.tier.backend == tier]
        ttft = [(o.lower or 0.0, o.ttft_holds) for o in of if o.ttft_holds is not None]
        many = [
            (o.throughput or 0.0, o.throughput_holds) for o in of if o.throughput_holds is not None
        ]
        lines.append(
            f"- **{pool}** against {tier}: all-hit TTFT lower by {_claim(ttft, _tenths)}; "
            f"throughput of bursts {_claim(many, lambda value: f'{value:.1f}x')}"
        )
    return [*lines, ""] if lines else []


def _claim(found: Sequence[tuple[float, bool]], text: Callable[[float], str]) -> str:
    """What was measured, from the worst to the best, and in how many phases a claim holds."""
    if not found:
        return "- (not measured)"
    values = [value for value, _ in found]
    measured = " to ".join(dict.fromkeys(map(text, (min(values), max(values)))))
    held = sum(holds for _, holds in found)
    if held in (0, len(found)):
        return f"{measured}: {_holds(held > 0)}"
    return f"{measured}: holds in {held} of {len(found)} phases"


def _bars(rows: Rows, bytes_per_token: int | None, bus_gbps: float | None) -> list[str]:
    found = bars(rows, bytes_per_token, bus_gbps)
    if not found:
        return []
    table = [
        [one.what, one.phase, one.value, one.limit, _holds(one.holds), one.note] for one in found
    ]
    lines = ["## Bars", ""]
    if bus_gbps:
        lines += [f"The bus carries {bus_gbps:g} GB/s.", ""]
    return [*lines, *_table(["what", "phase", "value", "bar", "", "notes"], table), ""]


_HEAD = [
    "phase",
    "backend",
    "TTFT ms mean",
    "p50 (of repeats)",
    "p99",
    "TPOT ms",
    "longest gap ms",
    "requests/s",
    "tokens/s",
    "stored GiB",
    "loaded GiB",
    "CPU s",
    "hit",
    "reuse",
    "flags",
]


def _tables(rows: Rows) -> list[str]:
    lines = [
        "## Everything that was measured",
        "",
        "Medians over repetitions; p99 is over the requests of all of them, and near the slowest "
        "where these are fewer than a hundred. Tokens/s counts prompts and answers. CPU seconds "
        "are those of all processes but the client. Hit: tokens that were loaded; reuse: tokens "
        "that an earlier request had; both of all tokens of prompts.",
        "",
    ]
    for workload in rows.workloads:
        table, head = [_cells(row) for row in rows.of(workload=workload)], list(_HEAD)
        gaps = head.index("longest gap ms")
        if all(cells[gaps] == "-" for cells in table):
            for cells in (head, *table):
                del cells[gaps]
        lines += [f"### {workload}", "", *_table(head, table), ""]
    return lines


def _cells(row: Row) -> list[str]:
    p50 = _ms(row.ttft_p50)
    if len(row.repeats) > 1 and row.ttft_p50_low is not None:
        p50 += f" ({_ms(row.ttft_p50_low)}-{_ms(row.ttft_p50_high)})"
    cpu = _number(row.cpu_s)
    groups = [f"{name} {_number(spent)}" for name, spent in row.cpu_by.items() if spent > 0]
    if len(groups) > 1:
        cpu += f" ({', '.join(groups)})"
    return [
        row.name,
        row.backend,
        _ms(row.ttft_mean),
        p50,
        _ms(row.ttft_p99),
        _ms(row.tpot_s),
        _ms(row.longest_gap_s),
        _number(row.requests_per_s),
        _number(row.tokens_per_s),
        _gib(row.stored_bytes),
        _gib(row.loaded_bytes),
        cpu,
        _percent(row.hit),
        _percent(row.reuse),
        "; ".join(row.flags),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(_line(cell) for cell in cells) + " |" for cells in rows),
    ]


def _line(text: str) -> str:
    """On one line, and in one cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _shortened(entries: Sequence[str], most: int = 3) -> str:
    more = f"; and {len(entries) - most} more" if len(entries) > most else ""
    return "; ".join(entries[:most]) + more


def _holds(value: bool | None) -> str:
    return "-" if value is None else "holds" if value else "**does not hold**"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else _number(seconds * 1e3)


def _number(value: float | None) -> str:
    """Three digits, more before the point."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    rounded = abs(float(f"{value:.3g}"))
    return f"{value:.{0 if rounded >= 100 else 1 if rounded >= 10 else 2}f}"


def _gib(size: float | None) -> str:
    return "-" if size is None else _number(size / _GIB)


def _tenths(part: float) -> str:
    return f"{part * 100:.1f} %"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part * 100:.0f} %"
