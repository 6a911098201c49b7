"""The report's pictures, one file each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report_backends import RECOMPUTE
from .report_rows import Row, Rows, is_all_hit, is_burst, is_populate
from .workload_document_set import length_name

_DPI = 130


@dataclass(frozen=True)
class _Look:
    color: str
    marker: str
    line: str = "-"
    #: So that another one can be seen below it.
    hollow: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """For matplotlib."""
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.line,
            "linewidth": 1.2 if self.hollow else 1.8,
            "markersize": 9 if self.hollow else 6,
            "markerfacecolor": "none" if self.hollow else self.color,
        }


#: The colours that Okabe and Ito chose to be told apart by everybody. What is compared with each
#: other has the same colour, and other markers and lines.
_LOOKS = {
    RECOMPUTE: _Look("#000000", "x", "--"),
    "beluga": _Look("#0072B2", "o"),
    "cpu": _Look("#0072B2", "^", ":", hollow=True),
    "beluga-mp": _Look("#D55E00", "s"),
    "lmcache-mp": _Look("#D55E00", "v", ":", hollow=True),
    "dax": _Look("#56B4E9", "D", "-."),
    "disk": _Look("#999999", "d", "-."),
    "resp": _Look("#CC79A7", "P", "-."),
    "redis": _Look("#CC79A7", "X", ":"),
    "mooncake": _Look("#009E73", "<", "-."),
    "lmserver": _Look("#E69F00", ">", "-."),
}
_OTHER = _Look("#666666", ".")


def draw(rows: Rows, folder: Path, prefix: str = "") -> list[Path]:
    """Write those for which there are rows; which files that were.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
        OSError: a file cannot be written.
    """
    kinds: dict[str, Callable[[Rows], Any]] = {
        "ttft-by-length": _by_length,
        "ttft-by-reuse": _by_reuse,
        "throughput-by-concurrency": _by_concurrency,
        "trace-ttft": _trace,
    }
    written = []
    for name, kind in kinds.items():
        drawing = kind(rows)
        if drawing is not None:
            path = folder / f"{prefix}{name}.png"
            drawing.savefig(path, format="png", dpi=_DPI)
            written.append(path)
    return written


def _by_length(rows: Rows) -> Any:
    panels = [
        ("populate: computed, and stored", [r for r in _documents(rows) if is_populate(r)]),
        ("all-hit: the same prompts again", [r for r in _documents(rows) if is_all_hit(r)]),
    ]
    panels = [(title, found) for title, found in panels if found]
    if not panels:
        return None
    drawing, axes = _drawing(len(panels), "Time to the first token, one request at a time")
    for axis, (title, found) in zip(axes, panels, strict=True):
        _lines(axis, found, lambda row: row.axes["tokens"])
        axis.set(title=title, xlabel="tokens of the prompt", xscale="log", yscale="log")
        _length_ticks(axis, found)
        _time_ticks(axis)
    axes[0].set_ylabel("TTFT, seconds (median; bars: 10-90 % of requests)")
    _legend(drawing, axes)
    return drawing


def _by_reuse(rows: Rows) -> Any:
    found = [row for row in rows.of(workload="reuse") if "reuse" in row.axes]
    if not found:
        return None
    lengths = sorted({row.axes["tokens"] for row in found})
    drawing, axes = _drawing(len(lengths), "Time to the first token by what others have asked for")
    for axis, length in zip(axes, lengths, strict=True):
        _lines(
            axis,
            [row for row in found if row.axes["tokens"] == length],
            lambda row: row.axes["reuse"] * 100,
        )
        title = f"prompts of {length_name(length)} tokens"
        axis.set(title=title, xlabel="% of the prompt that earlier ones had", yscale="log")
        axis.set_xticks(sorted({row.axes["reuse"] * 100 for row in found}))
        _time_ticks(axis)
    axes[0].set_ylabel("TTFT, seconds (median; bars: 10-90 % of requests)")
    _legend(drawing, axes)
    return drawing


def _by_concurrency(rows: Rows) -> Any:
    bursts = [row for row in rows if is_burst(row)]
    if not bursts:
        return None
    lengths = sorted({row.axes["tokens"] for row in bursts})
    found = bursts + [row for row in rows if is_all_hit(row) and row.axes.get("tokens") in lengths]
    drawing, axes = _drawing(len(lengths), "Throughput of hits")
    for axis, length in zip(axes, lengths, strict=True):
        here = [row for row in found if row.axes["tokens"] == length]
        _lines(
            axis, here, lambda row: row.axes["concurrency"], lambda row: row.requests_per_s, None
        )
        axis.set(title=f"prompts of {length_name(length)} tokens", xlabel="requests at once")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = sorted({row.axes["concurrency"] for row in here})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        _plain(axis.yaxis)
    axes[0].set_ylabel("requests per second")
    _legend(drawing, axes)
    return drawing


def _trace(rows: Rows) -> Any:
    found = [row for row in rows.of(workload="trace") if row.ttft]
    if not found:
        return None
    names = list(dict.fromkeys(row.name for row in found))
    drawing, axes = _drawing(len(names), "Time to the first token of a trace's requests")
    for axis, name in zip(axes, names, strict=True):
        for row in found:
            if row.name == name:
                times = sorted(row.ttft)
                axis.plot(
                    times,
                    [(i + 1) / len(times) for i in range(len(times))],
                    drawstyle="steps-post",
                    label=row.backend,
                    markevery=max(len(times) // 8, 1),
                    **_LOOKS.get(row.backend, _OTHER).style,
                )
        axis.set(title=name, xlabel="TTFT, seconds", xscale="log", ylim=(0, 1.01))
        _plain(axis.xaxis)
    axes[0].set_ylabel("part of the requests that had their first token by then")
    _legend(drawing, axes)
    return drawing


def _documents(rows: Rows) -> Iterable[Row]:
    return rows.of(workload="documents")


def _drawing(panels: int, title: str) -> tuple[Any, list[Any]]:
    """Side by side, with the same scale; the title is above the first panel, at its left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.2 * panels + 1.8, 5.6), layout="constrained")
    FigureCanvasAgg(drawing)
    drawing.suptitle(title, fontweight="bold", x=0.02, horizontalalignment="left")
    axes = list(drawing.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axis in axes:
        axis.grid(True, which="major", alpha=0.3)
    return drawing, axes


def _lines(
    axis: Any,
    rows: Sequence[Row],
    x: Callable[[Row], float],
    y: Callable[[Row], float | None] = lambda row: row.spread.median if row.spread else None,
    spread: Callable[[Row], Any] | None = lambda row: row.spread,
) -> None:
    for backend in dict.fromkeys(row.backend for row in rows):
        points = sorted(
            ((x(row), value, row) for row in rows if row.backend == backend and (value := y(row))),
            key=lambda point: point[0],
        )
        if not points:
            continue
        bars = None
        if spread is not None:
            found = [(value, spread(row)) for _, value, row in points]
            bars = [[v - one.low for v, one in found], [one.high - v for v, one in found]]
        axis.errorbar(
            [point[0] for point in points],
            [point[1] for point in points],
            yerr=bars,
            label=backend,
            **_LOOKS.get(backend, _OTHER).style,
            capsize=2,
        )


def _length_ticks(axis: Any, rows: Sequence[Row]) -> None:
    ticks = sorted({row.axes["tokens"] for row in rows})
    axis.set_xticks(ticks, [length_name(tick) for tick in ticks])
    axis.minorticks_off()


def _time_ticks(axis: Any) -> None:
    _plain(axis.yaxis)
    axis.grid(True, which="minor", axis="y", alpha=0.12)


def _plain(axis: Any) -> None:
    """0.1, 1, 10; and 2 and 5 between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(drawing: Any, axes: Sequence[Any]) -> None:
    """One for all, beside them."""
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    drawing.legend(
        entries.values(),
        [f"{name} (recompute)" if name == RECOMPUTE else name for name in entries],
        loc="outside right center",
        frameon=False,
    )
