"""The figures as one picture: latency, time per block, bandwidth by threads, GPU copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmcache_beluga.characterize.figures import (
    COPY_IN,
    COPY_OUT,
    LOADS,
    Figure,
    Figures,
    unique,
)
from lmcache_beluga.quantities import format_size

_BANDWIDTHS = ("load", "ntstore", COPY_IN, COPY_OUT)


def draw(figures: Figures, path: Path) -> None:
    """Write a PNG. Raises ModuleNotFoundError without matplotlib, OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    gpu = [one for one in figures.pick(unit="GB/s") if one.reader.startswith("gpu ")]
    drawing = Drawing(figsize=(14, 10 if gpu else 9), layout="constrained")
    FigureCanvasAgg(drawing)
    kinds = unique(f"{place.name} ({place.kind})" for place in figures.places)
    drawing.suptitle(f"beluga characterize: {', '.join(kinds)}")
    axes = drawing.subplots(2, 2).flat
    _latency(axes[0], figures)
    _blocks(axes[1], figures)
    _threads(axes[2], figures)
    if gpu:
        _gpu(axes[3], gpu)
    else:
        axes[3].set_axis_off()
        text = "\n".join(note for note in figures.notes) or "no GPU was measured"
        axes[3].text(0, 0.5, text, wrap=True, va="center")
    drawing.savefig(path, format="png", dpi=110)


def _latency(axis: Any, figures: Figures) -> None:
    found = figures.pick(operation=LOADS)
    names = [f"{one.place}\nfrom {one.reader}" for one in found]
    axis.barh(names, [one.value for one in found])
    axis.invert_yaxis()
    axis.set(title="Dependent 64-byte loads", xlabel="ns")


def _blocks(axis: Any, figures: Figures) -> None:
    for number, place in enumerate(figures.places):
        reader = figures.nearest_node(place.name)
        found = [
            one
            for one in figures.pick(place=place.name, reader=reader, unit="ns")
            if one.operation != LOADS
        ]
        for color, operation in enumerate(unique(one.operation for one in found)):
            line = [one for one in found if one.operation == operation]
            axis.plot(
                [one.block for one in line],
                [one.value for one in line],
                color=f"C{color}",
                linestyle=("-", "--", ":", "-.")[number % 4],
                label=f"{operation}, {place.name}",
            )
    axis.set(title="One block, one thread", xlabel="bytes", ylabel="ns", xscale="log", yscale="log")
    axis.legend(fontsize=6, ncols=2)


def _threads(axis: Any, figures: Figures) -> None:
    found = [
        one
        for one in figures.pick(unit="GB/s")
        if one.operation in _BANDWIDTHS and not one.reader.startswith("gpu ")
    ]
    for place, reader, operation in unique((f.place, f.reader, f.operation) for f in found):
        line = [f for f in found if (f.place, f.reader, f.operation) == (place, reader, operation)]
        axis.plot(
            [one.threads for one in line],
            [one.value for one in line],
            marker=".",
            label=f"{operation}, {place}, {reader}",
        )
    axis.set(title="Bandwidth", xlabel="threads", ylabel="GB/s")
    axis.set_xticks(sorted({one.threads for one in found}))
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=6)


def _gpu(axis: Any, found: list[Figure]) -> None:
    for place, reader, operation in unique((f.place, f.reader, f.operation) for f in found):
        line = [f for f in found if (f.place, f.reader, f.operation) == (place, reader, operation)]
        axis.plot(
            [one.block for one in line],
            [one.value for one in line],
            marker=".",
            label=f"{reader}: {operation}, {place}",
        )
    sizes = sorted({one.block for one in found})
    axis.set(title="GPU copies", xlabel="size", ylabel="GB/s", xscale="log")
    axis.set_xticks(sizes, [format_size(size) for size in sizes], rotation=45)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=6)
