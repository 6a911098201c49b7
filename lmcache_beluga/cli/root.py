"""``beluga`` itself: the table of commands, each loaded when it runs, and how errors are shown."""

from __future__ import annotations

import difflib
import errno
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from lmcache_beluga.errors import BelugaError


@dataclass(frozen=True)
class LazyCommand:
    """A command that is not imported until it runs, so that ``beluga --help`` is quick."""

    target: str
    """``module:function`` of the click command."""
    help: str
    extra: str = "cli"
    """The extra of this package that brings what the command imports."""


COMMANDS = {
    "demo": LazyCommand(
        "lmcache_beluga.cli.demo:demo", "Share a prompt's KV between two engines.", "demo"
    ),
    "format": LazyCommand("lmcache_beluga.cli.format:format_pool", "Create a pool."),
    "inspect": LazyCommand(
        "lmcache_beluga.cli.inspect:inspect_pool", "Show a pool's geometry, hosts, use and hits."
    ),
    "ls": LazyCommand("lmcache_beluga.cli.ls:ls", "List the chunks in a pool."),
    "rm": LazyCommand("lmcache_beluga.cli.rm:rm", "Remove chunks from a pool."),
    "check": LazyCommand("lmcache_beluga.cli.check:check", "Validate every record of a pool."),
    "host": LazyCommand("lmcache_beluga.cli.host:host", "List the hosts of a pool, or retire one."),
    "settings": LazyCommand(
        "lmcache_beluga.cli.settings:settings", "List all settings, and what they are here."
    ),
    "lmcache-server": LazyCommand(
        "lmcache_beluga.cli.lmcache_server:lmcache_server",
        "Start LMCache's server with the pool as its L1.",
        "demo",
    ),
    "bench": LazyCommand("lmcache_beluga.cli.bench:bench", "Measure this machine's pool.", "demo"),
    "characterize": LazyCommand(
        "lmcache_beluga.cli.characterize:characterize",
        "Measure the memory behind a pool, and recommend settings.",
        "characterize",
    ),
}

EXAMPLES = """\b
Examples:
  beluga demo
  beluga format /dev/shm/beluga.pool --size 64GiB
  beluga inspect /dev/shm/beluga.pool --watch
  beluga COMMAND --help
"""


class CommandError(click.ClickException):
    """One line on stderr, and exit status 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        message = " ".join(self.format_message().split())
        click.echo(f"beluga: error: {message}", file=file, err=file is None)


class LazyGroup(click.Group):
    """A group whose commands come from ``COMMANDS``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        module, _, function = lazy.target.partition(":")
        try:
            command = getattr(import_module(module), function)
        except ModuleNotFoundError as error:
            raise _missing_module(error, lazy) from error
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no command {args[0]!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's own would import every command to read its help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BelugaError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            click.echo("beluga: interrupted", err=True)
            raise click.exceptions.Exit(130) from None  # as shells do; 1 has a meaning already
        except ModuleNotFoundError as error:
            raise _missing_module(error, COMMANDS[ctx.invoked_subcommand or ""]) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone: click ends quietly
                raise
            raise CommandError(str(error)) from error


def _missing_module(error: ModuleNotFoundError, lazy: LazyCommand) -> CommandError:
    name = error.name or str(error)
    if name.startswith("lmcache_beluga"):
        return CommandError(f"{name} is missing: lmcache-beluga is not fully installed here")
    return CommandError(f"this command needs {name}: pip install 'lmcache-beluga[{lazy.extra}]'")


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXAMPLES,
)
@click.version_option(package_name="lmcache-beluga", prog_name="beluga")
def beluga() -> None:
    """One KV cache in shared memory, for every engine and host on it.

    PATH is the pool's file, such as /dev/shm/beluga.pool, or device, such as /dev/dax0.0; name all
    of them, in the order of the format, for a pool made of several. Without PATH, commands use the
    environment variable BELUGA_POOL, and other BELUGA_* settings as well (see beluga settings).

    Exit status: 0 success, 1 the command found what it looks for to be wrong, 2 it could not run.
    """
