"""``generate-trace``: writes a trace that the workload ``trace`` can replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .trace_file import write_trace
from .trace_generator import TraceShape, generate, reuse_of

_DEFAULT = TraceShape()


def _option(name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    default = getattr(_DEFAULT, name)
    return click.option(
        "--" + name.replace("_", "-"), default=default, show_default=True, help=text
    )


@click.command("generate-trace")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_option("requests", "How many.")
@_option("seconds", "From the first arrival to the last, about.")
@_option("burstiness", "Variation of the times between arrivals; 1: Poisson, 0: even.")
@_option("input_median", "Tokens of a prompt.")
@_option("input_sigma", "Of the logarithm of a prompt's length.")
@_option("output_median", "Tokens of an answer.")
@_option("output_sigma", "Of the logarithm of an answer's length.")
@_option("longest", "Tokens of a prompt, at most.")
@_option("longest_output", "Tokens of an answer, at most.")
@_option("reuse", "Part of all blocks that a cache of any size would hit.")
@_option("recency", "How much likelier late requests are continued than early ones.")
@click.option("--seed", default=0, show_default=True)
def generate_trace(file: Path, seed: int, **shape: Any) -> None:
    """Write FILE: requests as JSON lines in Mooncake's format.

    The defaults resemble a public trace of conversations in arrivals, lengths and reuse.
    """
    try:
        trace = generate(TraceShape(**shape), seed)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        write_trace(file, trace)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    tokens = sum(request.input_length for request in trace)
    click.echo(
        f"{file}: {len(trace)} requests in {trace[-1].timestamp / 1e3:.1f} s, {tokens} tokens "
        f"of prompts, {reuse_of(trace):.1%} of their blocks reused"
    )
