"""How tables and progress look: the same in every command. Imported only by commands that draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

# Without a terminal there is no width to fit; wide enough that no cell is cut or wrapped.
_PIPE_WIDTH = 160


def stdout_console() -> Console:
    """For results. Plain text of a fixed width when stdout is no terminal."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def stderr_console() -> Console:
    """For progress, which shows on a terminal only and leaves stdout to the results."""
    return Console(stderr=True, highlight=False)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house style."""
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values."""
    result = table(title=title)
    result.show_header = False
    result.add_column(style="bold")
    result.add_column(overflow="fold")
    for name, value in rows:
        result.add_row(name, value)
    return result


def host_name(name: str) -> str:
    """A host's name, in markup. Other hosts wrote it: it may hold anything."""
    return escape("".join(c if c.isprintable() else "?" for c in name))


def host_state(state: str, *, live: bool, left: bool) -> str:
    """Is a host alive? In markup."""
    if state != "member":
        return escape(state)
    if live:
        return "[green]live[/]"
    return "left" if left else "[yellow]dead[/]"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr that is gone at the end; yields what advances it by so many."""
    with Progress(console=stderr_console(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)
