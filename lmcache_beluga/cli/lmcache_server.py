"""``beluga lmcache-server``: LMCache's multiprocess server, with the pool as its L1."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from lmcache_beluga.config import SETTINGS, Settings

EPILOG = """\b
Examples:
  beluga lmcache-server --pool /dev/shm/beluga.pool --pool-size 64GiB --port 5555
  beluga lmcache-server --pool /dev/dax0.0 --host-id 3 --port 5555 --http-port 8080
  BELUGA_POOL=/dev/dax0.0 beluga lmcache-server --chunk-size 512 --l2-adapter '{...}'
"""


def _parsed(name: str) -> Any:
    return lambda ctx, param, value: None if value is None else _parse(name, value, ctx, param)


def _parse(name: str, value: Any, ctx: click.Context, param: click.Parameter) -> Any:
    kind = next(setting.kind for setting in SETTINGS if setting.name == name)
    try:
        return kind.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} ({error}): give {kind.accepts}", ctx, param) from None


@click.command(
    "lmcache-server",
    epilog=EPILOG,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
)
@click.option(
    "--pool",
    "paths",
    multiple=True,
    metavar="PATH",
    help="The pool's file or device; several times, in the order of the format, for a pool made of "
    "several.  [env var: BELUGA_POOL; required]",
)
@click.option(
    "--pool-size",
    "size",
    metavar="SIZE",
    callback=_parsed("size"),
    help="Create the pool if the file is missing.  [env var: BELUGA_SIZE]",
)
@click.option(
    "--host-id",
    metavar="N",
    callback=_parsed("host_id"),
    help="This machine's number in the pool.  [env var: BELUGA_HOST_ID; default: 0]",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[LMCACHE OPTION]...")
def lmcache_server(
    paths: tuple[str, ...], size: int | None, host_id: int | None, arguments: tuple[str, ...]
) -> None:
    """Start LMCache's server with the pool as its L1.

    Engines find what any server or engine of any host stored there, and GPUs copy from and to the
    pool itself. Other settings of the pool are read from the environment (beluga settings).

    All options of lmcache server are passed on. Of these, --l1-size-gb is only needed where a GPU
    cannot reach the pool, for copies, and --eviction-policy is not: the pool evicts by itself.
    Those that name another L1 are refused, and so is --p2p-advertise-url.

    Exit status: that of LMCache's server; 2 if it was not started.
    """
    from lmcache_beluga.engines.l1_server import serve

    given: dict[str, Any] = {"pool": paths or None, "size": size, "host_id": host_id}
    given = {name: value for name, value in given.items() if value is not None}
    serve(dataclasses.replace(Settings.from_environ(), **given), arguments)
