"""``beluga check``: walk a pool and validate every record in it."""

from __future__ import annotations

import dataclasses
import json

import click

from lmcache_beluga.cli.options import attach, host_id_option, json_option, paths_argument

EPILOG = """\b
Examples:
  beluga check /dev/shm/beluga.pool
  beluga check --json || mail -s "pool damaged" root
"""


@click.command("check", epilog=EPILOG)
@paths_argument
@host_id_option
@json_option
@click.pass_context
def check(ctx: click.Context, paths: tuple[str, ...], host_id: int, as_json: bool) -> None:
    """Validate every record of a pool.

    Engines may go on using the pool meanwhile. A process that attaches as the first of its host
    repairs what a crash left behind, and so does this one, before it looks.

    Exit status: 0 the pool is clean, 1 problems were found, 2 the pool could not be opened.
    """
    from lmcache_beluga.cli.tables import stderr_console

    with attach(paths, host_id) as pool, stderr_console().status("Checking every record..."):
        report = pool.check()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report) | {"ok": report.ok}, indent=2))
    else:
        for problem in report.errors:
            click.echo(problem)
        if report.problems > len(report.errors):
            click.echo(f"... and {report.problems - len(report.errors)} more")
        verdict = "clean" if report.ok else f"problems: {report.problems}"
        click.echo(f"{verdict} ({report.chunks} chunks, {report.slots} slots)")
    ctx.exit(0 if report.ok else 1)
