"""What commands share: the pool's paths, options made from the table of settings, attaching."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lmcache_beluga.config import SETTINGS, Settings

if TYPE_CHECKING:
    from lmcache_beluga.pool import Pool

F = TypeVar("F", bound=Callable[..., Any])

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def setting_option(name: str, help: str, *, metavar: str) -> Callable[[F], F]:
    """An option for the setting ``name``: read like it, with its default and variable."""
    setting = _BY_NAME[name]

    def read(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is None:
            return None
        try:
            return setting.kind.parse(value)
        except ValueError as error:
            message = f"{value!r} ({error}): give {setting.kind.accepts}"
            raise click.BadParameter(message, ctx, param) from None

    return click.option(
        "--" + name.replace("_", "-"),
        setting.attribute,
        type=click.UNPROCESSED,
        callback=read,
        metavar=metavar,
        default=setting.default_text if setting.default is not None else None,
        envvar=setting.variable,
        show_envvar=True,
        show_default=True,
        help=help,
    )


paths_argument = click.argument("paths", nargs=-1, metavar="[PATH]...")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

host_id_option = setting_option("host_id", "This machine's number in the pool.", metavar="N")


def pool_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths that were given, else those in BELUGA_POOL; raises click.UsageError without."""
    found = tuple(paths) or Settings.from_environ().pool
    if not found:
        raise click.UsageError("name the pool's PATH, or set the environment variable BELUGA_POOL")
    return found


def attach(paths: Sequence[str], host_id: int, *, takeover: bool = False) -> Pool:
    """Attach to a pool that exists as one more process of this host; raises BelugaError."""
    from lmcache_beluga.pool import Pool

    settings = dataclasses.replace(
        Settings.from_environ(),
        pool=pool_paths(paths),
        host_id=host_id,
        # Looking at a pool must never create one, take a host id over, or fault terabytes in.
        size=None,
        takeover=takeover,
        prefault=False,
    )
    return Pool.open(**settings.pool_arguments())
