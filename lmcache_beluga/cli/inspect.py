"""``beluga inspect``: a pool's geometry, devices, hosts, occupancy, fragmentation and counters."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from lmcache_beluga.cli.options import attach, host_id_option, json_option, paths_argument

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lmcache_beluga.pool import Pool

EPILOG = """\b
Examples:
  beluga inspect /dev/shm/beluga.pool
  beluga inspect /dev/shm/beluga.pool --watch
  beluga inspect --json | jq .occupancy.chunks           # the pool in BELUGA_POOL
"""


@click.command("inspect", epilog=EPILOG)
@paths_argument
@click.option("--watch", "-w", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two looks of --watch.",
)
@host_id_option
@json_option
def inspect_pool(
    paths: tuple[str, ...], watch: bool, interval: float, host_id: int, as_json: bool
) -> None:
    """Show a pool's geometry, devices, hosts, occupancy, fragmentation and counters.

    Occupancy and counters are those of this host. With --watch, --json prints one line per look.
    """
    pause = interval if watch else None
    # Ctrl-C is how one stops watching, and no failure.
    with attach(paths, host_id) as pool, suppress(*[KeyboardInterrupt] if watch else []):
        if as_json:
            _print_json(pool, pause)
        else:
            _print_tables(pool, pause)


def _print_json(pool: Pool, interval: float | None) -> None:
    if interval is None:
        click.echo(json.dumps(pool.inspect(), indent=2))
        return
    while True:
        click.echo(json.dumps(pool.inspect()))
        time.sleep(interval)


def _print_tables(pool: Pool, interval: float | None) -> None:
    from lmcache_beluga.cli.inspect_tables import tables_of
    from lmcache_beluga.cli.tables import stdout_console

    console = stdout_console()

    def look() -> RenderableType:
        return tables_of(pool.inspect(), console.width)

    if interval is None:
        console.print(look())
    elif console.is_terminal:
        from rich.live import Live

        with Live(look(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(look(), refresh=True)
    else:
        while True:
            console.print(look())
            time.sleep(interval)
