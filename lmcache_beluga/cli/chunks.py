"""A chunk as ``ls`` shows it and ``rm`` selects it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lmcache_beluga.keys import describe

if TYPE_CHECKING:
    from lmcache_beluga.pool import Entry, Pool


@dataclass(frozen=True)
class Chunk:
    """One chunk in a pool, with its key taken apart."""

    entry: Entry
    key: dict[str, Any]
    """What ``keys.describe`` says of the record."""

    @property
    def model(self) -> str:
        return str(self.key.get("model", ""))

    @property
    def rank(self) -> str:
        """The worker's rank, or a hybrid model's packed rank; empty for a key of another kind."""
        return str(self.key.get("worker_id", self.key.get("kv_rank", "")))

    @property
    def layer(self) -> str:
        return str(self.key.get("layer_id", ""))

    @property
    def hash(self) -> str:
        """The hash of the chunk's tokens in hex; the whole record for a key of another kind.

        Without the sign that Python's own hash() may give: it would pass for an option.
        """
        return str(self.key.get("chunk_hash", self.entry.record.hex())).lstrip("-")

    def as_json(self) -> dict[str, Any]:
        """Every field; ``key`` is the record in hex, which ``beluga rm`` takes."""
        entry = self.entry
        fields = {name: value for name, value in self.key.items() if name != "record"}
        return {
            "key": entry.record.hex(),
            **fields,
            "size": entry.size,
            "state": entry.state,
            "leased": entry.leased,
            "age_ms": entry.age_ms,
            "depth": entry.depth,
            "host": entry.host,
            "extent": entry.extent,
            "slot": entry.slot,
            "generation": entry.generation,
            "meta": entry.meta.hex(),
        }


def chunks_in(pool: Pool, model: str | None = None) -> Iterator[Chunk]:
    """The chunks in ``pool``, those of one model if given: a name, or a pattern with ``*``."""
    for entry in pool.keys():  # noqa: SIM118, a pool is no dict
        chunk = Chunk(entry, describe(entry.record))
        if model is None or fnmatchcase(chunk.model, model):
            yield chunk
