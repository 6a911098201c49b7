"""``beluga bench``: what the pool does on this machine, and whether it meets its bars."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmcache_beluga.signals import terminable

if TYPE_CHECKING:
    from rich.console import Console

    from lmcache_beluga.cli.bench_report import Row, Section

_SECTIONS = {
    "lookup": "bench_lookup:run",
    "copy": "bench_copy:run",
    "engine": "bench_engines:run_engine",
    "compare": "bench_engines:run_compare",
    "l2": "bench_l2:run",
    "server": "bench_server:run",
    "hammer": "bench_hammer:run",
    "noncoherent": "bench_noncoherent:run",
    "gpu": "bench_gpu:run",
    "gpus": "bench_gpus:run",
}
_FOR_GPUS = {"gpu", "gpus"}

EPILOG = """\b
Sections:
  lookup   batched lookup in pools of 10 k, 100 k and 1 M entries (12 GiB of memory, or fewer sizes)
  copy     put, get by view and read_into against memcpy
  engine   LMCache engine: store and retrieve, pool against LMCache's hot cache
  compare  the same against LMCache's Redis, local-disk and DAX backends
  l2       LMCache's multiprocess mode: L2 loads and lookups, pool against memcpy, DAX and Redis
  server   LMCache's multiprocess server on the pool against its own private L1
  hammer   several processes on one pool at once, every read verified
  noncoherent  what flushes and fences cost: lookups with 2, 4 and 16 hosts, leases, copies
  gpus     several processes on one GPU, and one on each, at once (where there is CUDA)
  gpu      a GPU's copies to and from the pool by size and method, blocks of models, latencies
\b
Examples:
  beluga bench
  beluga bench lookup copy --json results.json
  beluga bench --quick
"""


@click.command("bench", epilog=EPILOG)
@click.argument(
    "sections", nargs=-1, metavar="[SECTION]...", type=click.Choice([*_SECTIONS, "all"])
)
@click.option("--quick", is_flag=True, help="Smaller and shorter: a look, not a measurement.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Also write results, samples, machine and versions to FILE.",
)
@click.option(
    "--dir",
    "parent",
    default="/dev/shm",
    show_default=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Where the pools go.",
)
@click.pass_context
def bench(
    ctx: click.Context,
    sections: tuple[str, ...],
    quick: bool,
    json_file: Path | None,
    parent: Path,
) -> None:
    """Measure this machine's pool.

    Values are medians of rounds in which what is compared takes turns. Bars are ratios and limits
    for a machine that does nothing else; a bar that does not hold is shown, not an error.

    Exit status: 0 everything was measured, 1 a result was wrong (not slow: wrong), 2 a section
    could not run.
    """
    from lmcache_beluga.cli.bench_report import BenchError, write_json
    from lmcache_beluga.cli.bench_scratch import scratch
    from lmcache_beluga.cli.tables import stdout_console
    from lmcache_beluga.demo.environment import prepare_environment

    prepare_environment()
    load = os.getloadavg()[0]
    names = _all() if not sections or "all" in sections else list(dict.fromkeys(sections))
    console = stdout_console()
    done: dict[str, Section] = {}
    with terminable():
        for name in names:
            module, _, function = _SECTIONS[name].partition(":")
            try:
                with scratch(parent) as folder, _progress(name) as progress:
                    run = getattr(import_module(f"lmcache_beluga.cli.{module}"), function)
                    done[name] = run(folder, quick, progress)
            except BenchError as error:
                click.echo(f"beluga: error: {name}: {error}", err=True)
                continue
            _show(console, done[name])
    if json_file is not None:
        write_json(json_file, done, command=shlex.join(["beluga", *sys.argv[1:]]), load=load)
    if any(section.wrong for section in done.values()):
        ctx.exit(1)
    ctx.exit(0 if len(done) == len(names) else 2)


def _all() -> list[str]:
    """All sections, but what needs a GPU only where there is one."""
    import torch

    if torch.cuda.is_available():
        return list(_SECTIONS)
    click.echo("beluga: no GPU here: the sections for GPUs are left out", err=True)
    return [name for name in _SECTIONS if name not in _FOR_GPUS]


@contextmanager
def _progress(name: str) -> Iterator[Callable[[str], None]]:
    from lmcache_beluga.cli.tables import stderr_console

    with stderr_console().status(name) as status:
        yield lambda what: status.update(f"{name}: {what}")


def _show(console: Console, section: Section) -> None:
    from lmcache_beluga.cli.tables import table

    rows = table("", "Median", "", "10..90 %", "Bar", "Holds", "", title=section.title)
    for column in (1, 3):
        rows.columns[column].justify = "right"
    for row in section.rows:
        spread = "" if row.low is None or row.high is None else f"{_n(row.low)}..{_n(row.high)}"
        value = "-" if row.value is None else _n(row.value)
        rows.add_row(row.name, value, row.unit, spread, str(row.bar or ""), _holds(row), row.note)
    console.print(rows)
    for wrong in section.wrong[:10]:
        console.print(f"[bold red]WRONG[/]: {wrong}")


def _holds(row: Row) -> str:
    if row.holds is None:
        return ""
    return "[green]yes[/]" if row.holds else "[bold red]no[/]"


def _n(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
