"""``beluga settings``: the table of settings, for people, for programs, and for the README."""

from __future__ import annotations

import json

import click

from lmcache_beluga.cli.options import json_option
from lmcache_beluga.config import SETTINGS, Settings

EPILOG = """\b
Examples:
  beluga settings
  BELUGA_LEASE=3s beluga settings --json
"""


def markdown() -> str:
    """The table of all settings in Markdown, as the README has it."""
    lines = [
        "| Setting (`extra_config`) | Environment | Type | Default | Meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in SETTINGS:
        cells = (f"`{row.key}`", f"`{row.variable}`", row.kind.name, row.default_text, row.meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command("settings", epilog=EPILOG)
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the README's table.")
def settings(as_json: bool, as_markdown: bool) -> None:
    """List all settings, and what they are here.

    A setting beluga.NAME is given in LMCache's extra_config or as a variable BELUGA_NAME of the
    environment, which wins. The values shown are those of this environment.
    """
    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    here = Settings.from_environ()
    values = {row.name: getattr(here, row.attribute) for row in SETTINGS}
    if as_json:
        rows = [
            {
                "setting": row.key,
                "variable": row.variable,
                "type": row.kind.name.replace("`", ""),
                "unit": row.kind.unit,
                "default": row.default,
                "value": values[row.name],
                "meaning": row.meaning,
            }
            for row in SETTINGS
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    from lmcache_beluga.cli.tables import stdout_console, table

    rows_shown = table("Setting", "Here", "Default", "Meaning")
    for row in SETTINGS:
        changed = values[row.name] != row.default
        shown = row.kind.show(values[row.name]) if changed else ""
        rows_shown.add_row(row.key, shown, row.default_text, row.meaning.replace("`", ""))
    stdout_console().print(rows_shown)
