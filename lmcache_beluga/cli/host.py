"""``beluga host``: who takes part in a pool, and taking a machine that is gone out of it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from lmcache_beluga.cli.options import attach, json_option, paths_argument, pool_paths
from lmcache_beluga.errors import HostInUseError, InvalidArgumentError
from lmcache_beluga.quantities import format_duration_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmcache_beluga.pool import HostInfo

GROUP_EPILOG = """\b
Examples:
  beluga host list /dev/shm/beluga.pool
  beluga host retire 3 /dev/dax0.0
"""

LIST_EPILOG = """\b
Examples:
  beluga host list /dev/shm/beluga.pool
  beluga host list --json | jq '.[] | select(.live | not).id'      # the pool in BELUGA_POOL
"""

RETIRE_EPILOG = """\b
Examples:
  beluga host retire 3 /dev/dax0.0
  beluga host retire 3 /dev/dax0.0 --yes --json
"""


@click.group("host", epilog=GROUP_EPILOG)
def host() -> None:
    """List the hosts of a pool, or retire one.

    A host is a machine with its own number in the pool (beluga.host_id).
    """


@host.command("list", epilog=LIST_EPILOG)
@paths_argument
@json_option
def list_hosts(paths: tuple[str, ...], as_json: bool) -> None:
    """List the hosts of a pool.

    Attaches to nothing: it only looks, until each host has beaten or has been silent for so long
    that it is dead (beluga.dead_after, 5 s by default).

    \b
    State     live     it beats
              left     its last process has ended in order; its chunks are there
              dead     no beat for its dead_after; its chunks are there, its leases are not
              retired  it has nothing in the pool any more
    Pressure  extents that it could use and cannot have
    Coldest   since the last use of the chunk that it would evict next
    """
    hosts = _look(pool_paths(paths))
    if as_json:
        click.echo(json.dumps([_as_json(one) for one in hosts], indent=2))
        return
    from lmcache_beluga.cli.tables import host_name, host_state, stdout_console, table

    rows = table("Host", "Name", "State", "Last beat")
    for heading in ("Incarnation", "Processes", "Extents", "Pressure", "Coldest"):
        rows.add_column(heading, justify="right")
    for one in hosts:
        rows.add_row(
            str(one.id),
            host_name(one.name),
            host_state(one.state, live=one.live, left=one.left),
            _last_beat(one),
            str(one.incarnation),
            str(one.processes) if one.live else "-",
            str(one.extents),
            str(one.pressure) if one.live else "-",
            format_duration_ms(one.coldest_age_ms) if one.live and one.coldest_age_ms else "-",
        )
    stdout_console().print(rows)


@host.command("retire", epilog=RETIRE_EPILOG)
@click.argument("number", type=click.IntRange(0, 63), metavar="N")
@paths_argument
@click.option("--yes", "-y", is_flag=True, help="Do not ask: that machine is off, or cut off.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for readers of its chunks.",
)
@json_option
@click.pass_context
def retire(
    ctx: click.Context,
    number: int,
    paths: tuple[str, ...],
    yes: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Take host N out of a pool, whose machine will not come back.

    Its chunks go, once nobody reads them any more, and its extents become free for the others. Its
    number may be used again.

    That machine must be powered off, or its port to the device unbound. That it hangs is not
    enough: what still lies in its caches would overwrite other hosts' chunks later. A host that
    beats, or of which a process runs on this machine, is not retired: stop its engines. Where they
    end in order and will not come back, this gives the host's space to the others.

    Exit status: 0 it is retired, 1 some of its chunks are still being read: try again, 2 it was not
    retired.
    """
    found = pool_paths(paths)
    one = _the_host(_look(found), number)
    if one.state == "retired":
        _report(as_json, number, retired=True, chunks=0, extents=0, note="was retired already")
        return
    if not yes:
        name = f" ({one.name})" if one.name.isprintable() else ""
        click.confirm(
            f"Is the machine that was host {number}{name} powered off, or cut off from the pool? "
            "If it is not, it can damage other hosts' chunks. Retire it",
            abort=True,
            err=True,
        )
    with attach(found, number, takeover=True) as pool:
        before = pool.stats()
        done = pool.retire(timeout_ms=int(timeout * 1000))
    _report(
        as_json,
        number,
        retired=done,
        chunks=before["chunks"],
        extents=before["extents_owned"] if done else 0,
        note="retired" if done else "not retired yet: chunks of it are still being read; try again",
    )
    ctx.exit(0 if done else 1)


def _look(paths: Sequence[str]) -> list[HostInfo]:
    from lmcache_beluga.cli.tables import stderr_console
    from lmcache_beluga.pool import Pool

    with stderr_console().status("Waiting for a beat of every host..."):
        return Pool.hosts(paths)


def _the_host(hosts: Sequence[HostInfo], number: int) -> HostInfo:
    for one in hosts:
        if one.id != number:
            continue
        if one.live:
            raise HostInUseError(
                f"host {number} is alive: stop its engines and whatever else uses the pool there; "
                "if its machine cannot be reached, power it off"
            )
        if one.attached:
            raise HostInUseError(
                f"host {number} does not beat, but a process of this machine is attached as it: "
                "is it stopped? End it first"
            )
        return one
    members = ", ".join(str(one.id) for one in hosts) or "none"
    raise InvalidArgumentError(f"host {number} never took part in this pool; hosts: {members}")


def _report(
    as_json: bool, number: int, *, retired: bool, chunks: int, extents: int, note: str
) -> None:
    if as_json:
        facts = {"host": number, "retired": retired, "chunks": chunks, "extents": extents}
        click.echo(json.dumps(facts))
    else:
        click.echo(f"host {number} {note}; chunks removed: {chunks}, extents freed: {extents}")


def _as_json(one: HostInfo) -> dict[str, object]:
    return dataclasses.asdict(one)


def _last_beat(one: HostInfo) -> str:
    if one.live:
        return "now"
    if one.state != "member" or one.left:
        return "-"
    return f"over {format_duration_ms(one.silent_ms)} ago"
