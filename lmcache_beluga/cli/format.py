"""``beluga format``: create a pool."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from lmcache_beluga.cli.options import json_option, paths_argument, pool_paths, setting_option
from lmcache_beluga.quantities import format_size

EPILOG = """\b
Examples:
  beluga format /dev/shm/beluga.pool --size 64GiB
  beluga format /dev/dax0.0 /dev/dax1.0 --chunk-hint 16MiB
  beluga format /dev/dax0.0 --visibility noncoherent --max-hosts 16
  beluga format /dev/shm/beluga.pool --size 64GiB --force
"""


@click.command("format", epilog=EPILOG)
@paths_argument
@setting_option("size", "Size of each file; a device has its own.", metavar="SIZE")
@setting_option("chunk_hint", "Typical size of a chunk; it sizes the index.", metavar="SIZE")
@setting_option(
    "extent_size",
    "Largest chunk, and what hosts take at once; without it, by pool size.",
    metavar="SIZE",
)
@setting_option("max_hosts", "Room for this many host ids.", metavar="N")
@setting_option("visibility", "coherent or noncoherent.", metavar="MODE")
@setting_option(
    "payload_visibility",
    "flush, or direct where no CPU ever caches payload.",
    metavar="MODE",
)
@setting_option(
    "key_scheme",
    "Refuse engines that hash prompts otherwise; without it, the first engine decides.",
    metavar="TEXT",
)
@setting_option("mode", "Permissions of new files.", metavar="OCTAL")
@click.option(
    "--force", is_flag=True, help="Format although the pool is in use; its users stop using it."
)
@json_option
def format_pool(
    paths: tuple[str, ...],
    size: int | None,
    chunk_hint: int | None,
    extent_size: int | None,
    max_hosts: int,
    visibility: str,
    payload_visibility: str,
    key_scheme: str | None,
    mode: int,
    force: bool,
    as_json: bool,
) -> None:
    """Create a pool.

    Several PATHs become one pool; list them in the same order whenever they are used. A file that
    is not there is created with the given size, sparse: it takes memory as chunks come in. A pool
    that nobody uses is formatted anew, and its chunks are lost; a file that holds something else is
    never touched. Engines with beluga.size in their settings create a missing pool by themselves.
    """
    from lmcache_beluga.pool import Pool

    arguments: dict[str, Any] = {
        "size": size,
        "chunk_hint": chunk_hint,
        "extent_size": extent_size,
        "key_scheme": key_scheme,
    }
    info = Pool.format(
        pool_paths(paths),
        max_hosts=max_hosts,
        visibility=visibility,
        payload_visibility=payload_visibility,
        mode=mode,
        force=force,
        **{name: value for name, value in arguments.items() if value is not None},
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(info), indent=2))
    else:
        total = sum(device.size for device in info.devices)
        click.echo(
            f"formatted {', '.join(device.path for device in info.devices)}: "
            f"{format_size(total)}, {info.extents} extents of {format_size(info.extent_size)}, "
            f"uuid {info.uuid}"
        )
