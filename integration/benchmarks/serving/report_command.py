"""``report``: tables, plots and a verdict from result files."""

from __future__ import annotations

from pathlib import Path

import click

from .report_markdown import markdown
from .report_results import ReportError, read_results
from .report_rows import Rows

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("report")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--markdown", "markdown_file", type=_FILE, help="Write it there, not to stdout.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder for PNGs.")
@click.option(
    "--bus-gbps",
    type=click.FloatRange(min=0, min_open=True),
    help="What the bus to the GPU carries, in 1e9 bytes per second: 55.4 for PCIe 5 x16.",
)
def report(
    files: tuple[Path, ...],
    markdown_file: Path | None,
    plots: Path | None,
    bus_gbps: float | None,
) -> None:
    """Say what FILES, written with --json, have measured.

    Files of the same machine, versions and settings are put together. Exit status: 0, whatever the
    numbers are; 2 if a file is no result file.
    """
    try:
        results = read_results(files)
        text = markdown(results, bus_gbps)
        if markdown_file is None:
            click.echo(text, nl=False)
        else:
            markdown_file.write_text(text, encoding="utf-8")
            click.echo(f"wrote {markdown_file}")
        if plots is not None:
            from .plots import draw

            plots.mkdir(parents=True, exist_ok=True)
            for number, one in enumerate(results):
                prefix = f"{number + 1}-" if len(results) > 1 else ""
                for path in draw(Rows(one.phases), plots, prefix):
                    click.echo(f"wrote {path}")
    except ReportError as error:
        raise click.UsageError(str(error)) from None
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"plots need {error.name}: pip install 'lmcache-beluga[characterize]'"
        ) from None
    except OSError as error:
        raise click.ClickException(str(error)) from None
