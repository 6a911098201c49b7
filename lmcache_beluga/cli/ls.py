"""``beluga ls``: list the chunks in a pool."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice

import click

from lmcache_beluga.cli.chunks import Chunk, chunks_in
from lmcache_beluga.cli.options import attach, host_id_option, json_option, paths_argument
from lmcache_beluga.quantities import format_duration_ms, format_size

EPILOG = """\b
Examples:
  beluga ls /dev/shm/beluga.pool
  beluga ls --model 'meta-llama/*' --long
  beluga ls --json | jq -r '.[] | select(.leased) | .chunk_hash'
"""

_SHORT_HASH = 16


@click.command("ls", epilog=EPILOG)
@paths_argument
@click.option("--model", metavar="NAME", help="Only this model's chunks; * matches anything.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Stop after N chunks.")
@click.option("--long", "-l", "long", is_flag=True, help="Whole hashes, and where each chunk lies.")
@host_id_option
@json_option
def ls(
    paths: tuple[str, ...],
    model: str | None,
    limit: int | None,
    long: bool,
    host_id: int,
    as_json: bool,
) -> None:
    """List the chunks in a pool, one per line.

    AGE is the time since a chunk was last stored or used. LEASED chunks are in use and not evicted;
    "closing" ones are removed and wait for their readers. The pool goes on working: chunks that
    come or go meanwhile may be shown or not.
    """
    with attach(paths, host_id) as pool:
        found = islice(chunks_in(pool, model), limit)
        if as_json:
            _print_json(found)
        else:
            _print_lines(found, long)


def _print_json(chunks: Iterable[Chunk]) -> None:
    # Written as they come: a pool may hold more chunks than fit in this process.
    separator = "["
    for chunk in chunks:
        click.echo(f"{separator}\n  {json.dumps(chunk.as_json())}", nl=False)
        separator = ","
    click.echo("[]" if separator == "[" else "\n]")


def _print_lines(chunks: Iterable[Chunk], long: bool) -> None:
    width = 64 if long else _SHORT_HASH
    place = (
        f"{'HOST':>4} {'EXTENT':>6} {'SLOT':>10} {'GENERATION':>10} {'DEPTH':>5}  " if long else ""
    )
    heading = f"{'HASH':{width}} {'RANK':>4} {'LAYER':>5} {'SIZE':>10} {'STATE':7} {'LEASED':6} "
    click.echo(f"{heading}{'AGE':>8}  {place}MODEL")
    for chunk in chunks:
        entry = chunk.entry
        if long:
            place = (
                f"{entry.host:>4} {entry.extent:>6} {entry.slot:>10} {entry.generation:>10} "
                f"{entry.depth:>5}  "
            )
        hash_shown = chunk.hash if long else chunk.hash[:_SHORT_HASH]
        click.echo(
            f"{hash_shown:{width}} {chunk.rank:>4} {chunk.layer:>5} {format_size(entry.size):>10} "
            f"{entry.state:7} {'yes' if entry.leased else '':6} "
            f"{format_duration_ms(entry.age_ms):>8}  {place}{_printable(chunk.model)}"
        )


def _printable(text: str) -> str:
    """``text`` without characters that would move the cursor: the pool is not trusted."""
    return "".join(c if c.isprintable() else "?" for c in text)
