"""``beluga rm``: remove chunks from a pool."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from lmcache_beluga.cli.chunks import Chunk, chunks_in
from lmcache_beluga.cli.options import attach, host_id_option, json_option, pool_paths
from lmcache_beluga.quantities import format_size

if TYPE_CHECKING:
    from lmcache_beluga.pool import Pool

EPILOG = """\b
Examples:
  beluga rm /dev/shm/beluga.pool 7c1e0a52d9b34f66
  beluga rm /dev/shm/beluga.pool --model 'meta-llama/*'
  beluga rm --all --yes                                  # the pool in BELUGA_POOL
"""

_KEY = re.compile("[0-9a-fA-F]{8,}")
_BATCH = 1000


@click.command("rm", epilog=EPILOG)
@click.argument("paths_and_keys", nargs=-1, metavar="[PATH]... [KEY]...")
@click.option("--model", metavar="NAME", help="All chunks of this model; * matches anything.")
@click.option("--all", "everything", is_flag=True, help="All chunks.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@host_id_option
@json_option
@click.pass_context
def rm(
    ctx: click.Context,
    paths_and_keys: tuple[str, ...],
    model: str | None,
    everything: bool,
    yes: bool,
    host_id: int,
    as_json: bool,
) -> None:
    """Remove chunks from a pool.

    KEY is the hash of a chunk as beluga ls shows it, or its first 8 digits or more, or the key in
    full as beluga ls --json gives it. An argument of 8 hex digits or more that names no file is a
    KEY, any other one is a PATH. One hash may stand for several chunks: ranks, layers, models.

    Nobody finds a removed chunk any more; one that is being read just now gives its space back when
    its readers are done. What other hosts own they are asked to remove: they do so at their next
    heartbeat, a dead one when it comes back.

    Exit status: 0 done, 1 no chunk matches, 2 the pool could not be opened.
    """
    paths, keys = _take_apart(paths_and_keys)
    if bool(keys) + (model is not None) + everything != 1:
        raise click.UsageError("say which chunks to remove: KEYs, or --model, or --all")
    pool_paths(paths)  # a usage error comes before any other
    with attach(paths, host_id) as pool:
        chosen = [c for c in chunks_in(pool, model) if everything or model or _is_named(c, keys)]
        size = sum(chunk.entry.size for chunk in chosen)
        if chosen and not yes:
            # On stderr, so that stdout stays what a program reads.
            question = f"Remove {_count(len(chosen))} ({format_size(size)})?"
            click.confirm(question, abort=True, err=True)
        asked = sum(chunk.entry.host != pool.host_id for chunk in chosen)
        removed = _remove(pool, chosen, everything)
        if everything:
            removed += asked  # what clear() counts is this host's
    removed = min(removed, len(chosen))
    kept = len(chosen) - removed
    if as_json:
        counts = {"matched": len(chosen), "removed": removed, "asked": asked, "kept": kept}
        click.echo(json.dumps(counts))
    elif not chosen:
        click.echo("the pool is empty" if everything else "no chunk matches")
    else:
        others = f", {asked} of them by asking their hosts" if asked else ""
        rest = f"; {kept} gone already, or their hosts do not listen" if kept else ""
        click.echo(f"removed {_count(removed)}{others}{rest}")
    ctx.exit(0 if chosen or everything else 1)


def _take_apart(arguments: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    keys = [a for a in arguments if _KEY.fullmatch(a) and not os.path.exists(a)]
    paths = [a for a in arguments if a not in keys]
    return tuple(paths), tuple(key.lower() for key in keys)


def _is_named(chunk: Chunk, keys: Sequence[str]) -> bool:
    return chunk.entry.record.hex() in keys or chunk.hash.startswith(tuple(keys))


def _remove(pool: Pool, chunks: Sequence[Chunk], everything: bool) -> int:
    if everything:
        return pool.clear()
    from lmcache_beluga.cli.tables import progress

    removed = 0
    with progress("Removing", len(chunks)) as advance:
        for batch in _batches(chunks):
            removed += pool.remove([chunk.entry.record for chunk in batch])
            advance(len(batch))
    return removed


def _batches(chunks: Sequence[Chunk]) -> Iterator[Sequence[Chunk]]:
    for start in range(0, len(chunks), _BATCH):
        yield chunks[start : start + _BATCH]


def _count(chunks: int) -> str:
    return "1 chunk" if chunks == 1 else f"{chunks} chunks"
