"""``beluga demo``: one pool, two engines, and proof that the second read what the first wrote."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmcache_beluga.cli.options import json_option
from lmcache_beluga.quantities import format_size, parse_size
from lmcache_beluga.signals import terminable

if TYPE_CHECKING:
    from rich.console import Console

    from lmcache_beluga.demo.hosts import HostsOutcome
    from lmcache_beluga.demo.scenario import Outcome, Progress

EPILOG = """\b
Examples:
  beluga demo
  beluga demo --tokens 32768
  beluga demo --hosts 4
  beluga demo --pool /dev/dax0.0
  beluga demo --json | jq .speed_up
"""


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} ({error}): give a size such as 512MiB") from None


@click.command("demo", epilog=EPILOG)
@click.option(
    "--tokens",
    default=8192,
    show_default=True,
    metavar="N",
    help="Length of the prompt, 512 to 54677; 4 KiB of KV per token.",
)
@click.option(
    "--hosts",
    metavar="N",
    type=click.IntRange(2, 16),
    help="Act as so many hosts on one noncoherent pool; each loads what the others stored.",
)
@click.option(
    "--pool",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="File to create, or DAX device.  [default: a fresh file in /dev/shm]",
)
@click.option(
    "--size", metavar="SIZE", callback=_size, help="Size of a pool file.  [default: by prompt]"
)
@click.option("--keep", is_flag=True, help="Keep the pool, the YAML file and the engines' logs.")
@click.option(
    "--timeout",
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop everything after so long.",
)
@json_option
@click.pass_context
def demo(
    ctx: click.Context,
    tokens: int,
    hosts: int | None,
    pool: Path | None,
    size: int | None,
    keep: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Share a prompt's KV between two engines.

    Formats a pool and starts two processes, each with a real LMCache engine that a YAML file
    points at the pool. Engine A computes the KV cache of a long text with a small transformer of
    random weights and stores it. Engine B, which never saw the text, loads it and continues. Every
    byte of KV and every logit is compared. Runs on the first GPU, if torch finds one, else on the
    CPU.

    With --hosts, N processes act as N hosts on a pool with visibility noncoherent: all flushes and
    fences between hosts are executed. Each has an LMCache engine, stores a prompt of its own with
    random KV, then loads those of all others and compares every byte.

    Exit status: 0 all is equal, 1 anything differs, 2 the demo could not run.
    """
    from lmcache_beluga.demo.hosts import HostsOutcome, run_hosts
    from lmcache_beluga.demo.processes import WorkerFailed
    from lmcache_beluga.demo.scenario import DemoError, Plan, run

    plan = Plan(tokens=tokens, pool=pool, size=size, keep=keep, timeout_s=timeout)
    outcome: Outcome | HostsOutcome
    try:
        with terminable(), _progress() as progress:
            outcome = run_hosts(plan, hosts, progress) if hosts else run(plan, progress)
    except (DemoError, WorkerFailed) as error:
        click.echo(f"beluga: error: {error}", err=True)
        ctx.exit(2)
    if as_json:
        click.echo(json.dumps(outcome.as_json(), indent=2))
    elif isinstance(outcome, HostsOutcome):
        _show_hosts(outcome)
    else:
        _show(outcome)
    ctx.exit(0 if outcome.ok else 1)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from lmcache_beluga.cli.tables import stderr_console

    with Bars(
        TextColumn("{task.description:<30}"),
        BarColumn(),
        TextColumn("{task.fields[count]:>15}"),
        TimeElapsedColumn(),
        console=stderr_console(),
        transient=True,
    ) as bars:
        task = bars.add_task("", total=None, count="")

        def progress(stage: str, done: int, total: int) -> None:
            count = f"{done:,}/{total:,}" if total > 2 else ""
            bars.update(task, description=stage, completed=done, total=total, count=count)

        yield progress


def _show(outcome: Outcome) -> None:
    from lmcache_beluga.cli.tables import facts, stdout_console

    console = stdout_console()
    console.print(facts("KV cache of one prompt, two engines", _rows(outcome)))
    console.print(
        "One machine with its own device; hosts behind one switch use it in the same way."
        if outcome.pool_kind == "devdax"
        else f"Emulated: the pool is a {outcome.pool_kind} file in this machine's memory, not CXL "
        "behind a switch. The engines' path to it is the same, its speed is not."
    )
    _conclude(console, outcome, "engine B read exactly what engine A computed")


def _show_hosts(outcome: HostsOutcome) -> None:
    from lmcache_beluga.cli.tables import stdout_console, table

    console = stdout_console()
    title = f"{len(outcome.hosts)} hosts, one {outcome.visibility} pool"
    rows = table("Host", "Process", title=title)
    for heading in (
        "Owns",
        "Store",
        "Loaded of others",
        "Time",
        "GB/s",
        "Lookups",
        "Keys hit",
        "Missed",
        "Reads served",
        "KV equal",
    ):
        rows.add_column(heading, justify="right")
    for host in outcome.hosts:
        counted = host.counters
        rows.add_row(
            str(host.host),
            str(host.pid),
            f"{host.chunks_owned} chunks, {host.extents_owned} extents",
            _time(host.store_s),
            f"{host.loaded:,} tokens",
            _time(host.load_s),
            f"{host.load_gb_per_s:.2f}",
            f"{counted['lookups']:,}",
            f"{counted['hits']:,}",
            f"{counted['misses']:,}",
            f"{counted['gets']:,}, {format_size(counted['get_bytes'])}",
            _equal_bytes(host.bytes_wrong, host.bytes_compared),
        )
    console.print(rows)
    console.print(
        f"LMCache on {outcome.device}, backends {', '.join(outcome.backends)}; payload "
        f"visibility {outcome.payload_visibility}; the pool afterwards: "
        f"{'; '.join(outcome.pool_check_errors) or 'clean'}"
    )
    console.print(
        "Emulated: the hosts are processes of this machine, whose caches are coherent. All flushes "
        "and fences are executed; what they cost behind a switch, and what goes wrong without "
        "them, does not show here."
    )
    _conclude(console, outcome, "each host read exactly what the others stored")


def _conclude(console: Console, outcome: Outcome | HostsOutcome, good: str) -> None:
    if outcome.kept_in:
        console.print(f"Kept: {outcome.pool}; YAML file and logs in {outcome.kept_in}")
    failed = [name.replace("_", " ") for name, ok in outcome.checks.items() if not ok]
    if failed:
        for title, log in outcome.logs.items():
            click.echo(f"--- the log of {title} ends:\n{log}", err=True)
        console.print(f"[bold red]FAILED[/]: {', '.join(failed)}")
    else:
        console.print(f"[bold green]OK[/]: {good}")


def _rows(outcome: Outcome) -> list[tuple[str, str]]:
    full = outcome.tokens // outcome.chunk_tokens
    return [
        ("Prompt", f"{outcome.tokens:,} tokens of real text (one per byte)"),
        (
            "Engines",
            f"LMCache on {outcome.device}, processes {outcome.pids[0]} and {outcome.pids[1]}, "
            f"backends {', '.join(outcome.backends)}",
        ),
        ("B finds before A stored", f"{outcome.hit_before} tokens"),
        (
            "Tokens hit",
            f"{outcome.hit:,} of {full * outcome.chunk_tokens:,} ({full} chunks of "
            f"{outcome.chunk_tokens})",
        ),
        (
            "Bytes loaded",
            f"{format_size(outcome.loaded_bytes)}, {outcome.pool_hits} reads served by the pool",
        ),
        ("Time to recompute", _time(outcome.recompute_s)),
        (
            "Time to load",
            f"{_time(outcome.load_s)} (lookup {_time(outcome.lookup_s)} of it), "
            f"{outcome.load_gb_per_s:.2f} GB/s",
        ),
        ("Speed-up", f"{outcome.speed_up:,.0f}x"),
        (
            "Time to first token",
            f"{_time(outcome.first_token_recompute_s)} computed, "
            f"{_time(outcome.first_token_load_s)} loaded",
        ),
        ("KV equal", _equal(outcome.kv_bytes_wrong, outcome.kv_bytes_compared, "bytes")),
        (
            "Logits equal",
            _equal(outcome.logits_wrong, outcome.logits_compared, "next-token logits"),
        ),
        (
            "Control",
            f"with one chunk overwritten by its neighbour, {outcome.control_kv_bytes_wrong:,} "
            f"bytes and {outcome.control_logits_wrong:,} logits differ "
            f"(by up to {outcome.control_logits_max_difference:.1f})",
        ),
        ("Pool afterwards", "; ".join(outcome.pool_check_errors) or "clean"),
    ]


def _equal(wrong: int, compared: int, what: str) -> str:
    if compared == 0:
        return "[bold red]NOT COMPARED[/]"
    if wrong:
        return f"[bold red]NO[/]: {wrong:,} of {compared:,} {what} differ"
    return f"[green]yes[/], all {compared:,} {what} bit for bit"


def _equal_bytes(wrong: int, compared: int) -> str:
    if wrong or not compared:
        return _equal(wrong, compared, "bytes")
    return f"[green]yes[/], {format_size(compared)}"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} µs"
