"""How the figures of ``beluga characterize`` look in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from lmcache_beluga.characterize.figures import LOADS, Figure, Figures, unique
from lmcache_beluga.cli.tables import facts, table
from lmcache_beluga.quantities import format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lmcache_beluga.characterize.advice import Recommendation


def show(console: Console, figures: Figures, recommended: Sequence[Recommendation]) -> None:
    """Print everything: what was measured, the figures, what they speak for."""
    console.print(_places(figures))
    cpus = [one for one in figures.figures if not one.reader.startswith("gpu ")]
    gpus = [one for one in figures.figures if one.reader.startswith("gpu ")]
    console.print(_latency(figures))
    blocks = [one for one in cpus if one.unit == "ns" and one.operation != LOADS]
    if blocks:
        title = "One thread, one block: ns"
        console.print(_grid(title, blocks, lambda one: one.block, format_size))
    rates = [one for one in cpus if one.unit == "GB/s"]
    if rates:
        title = "Bandwidth by threads: GB/s"
        console.print(_grid(title, rates, lambda one: one.threads, str))
    rates = [one for one in gpus if one.unit == "GB/s"]
    if rates:
        title = "GPU, copies one after the other, by size: GB/s"
        console.print(_grid(title, rates, lambda one: one.block, format_size))
    alone = [one for one in gpus if one.unit == "ns" and one.operation != LOADS]
    if alone:
        title = "GPU, one copy alone, launch to done: ns"
        console.print(_grid(title, alone, lambda one: one.block, format_size))
    for one in figures.figures:
        if one.value is None:
            text = escape(f"{one.reader}, {one.place}, {one.operation}: {one.note}")
            console.print(f"[yellow]not measured[/]: {text}")
    console.print(_recommendations(recommended))


def _places(figures: Figures) -> Table:
    rows = []
    for place in figures.places:
        where = "" if place.node is None else f", NUMA node {place.node}"
        pages = f", {format_size(place.page_bytes)} pages" if place.page_bytes else ""
        rows.append(
            (escape(place.name), f"{format_size(place.nbytes)} of {place.what}{where}{pages}")
        )
    for node in figures.nodes:
        rows.append((f"node {node.number}", f"{len(node.cpus)} CPUs of this process"))
    rows += [(name, what) for name, _, what in (gpu.partition(": ") for gpu in figures.gpus)]
    rows += [("note", escape(note)) for note in figures.notes]
    return facts("Measured", rows)


def _latency(figures: Figures) -> Table:
    rows = table("", "From", "Median ns", "10..90 %", title="Latency of a dependent 64-byte load")
    for column in (2, 3):
        rows.columns[column].justify = "right"
    for one in figures.pick(operation=LOADS):
        low, high = one.low or 0, one.high or 0
        rows.add_row(escape(one.place), one.reader, _n(one.value), f"{low:.0f}..{high:.0f}")
    return rows


def _grid(
    title: str,
    figures: Sequence[Figure],
    column_of: Callable[[Figure], int],
    name_of: Callable[[int], str],
) -> Table:
    columns = sorted({column_of(one) for one in figures})
    rows = table("", "From", "", *map(name_of, columns), title=title)
    for column in rows.columns[3:]:
        column.justify = "right"
    for place, reader, operation in unique((f.place, f.reader, f.operation) for f in figures):
        cells = {
            column_of(one): _n(one.value)
            for one in figures
            if (one.place, one.reader, one.operation) == (place, reader, operation)
        }
        shown = (cells.get(column, "") for column in columns)
        rows.add_row(escape(place), reader, operation, *shown)
    return rows


def _recommendations(recommended: Sequence[Recommendation]) -> Table:
    rows = table("", "Setting", "Value", "Why", title="Recommended")
    rows.columns[2].overflow = "fold"
    rows.columns[3].overflow = "fold"
    for one in recommended:
        setting = one.setting or "(advice)"
        rows.add_row(escape(one.subject), setting, escape(one.value), escape(one.reason))
    return rows


def _n(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
