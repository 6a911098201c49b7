"""The pool's chunks under LMCache's ObjectKeys, a page at a time."""

from __future__ import annotations

from lmcache.v1.distributed.api import EncodedObjectKey, KeyEntry, KeyListPage

from lmcache_beluga.keys import describe
from lmcache_beluga.pool import Pool


def list_page(
    pool: Pool, model_name: str | None, page_size: int, cursor: str | None
) -> KeyListPage:
    """Up to ``page_size`` keys from ``cursor`` on (None: the first), as the walk finds them.

    A chunk that two hosts have is listed twice. Raises ValueError for a page size below 1, and a
    cursor that is none.
    """
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}: give 1 or more")
    at: int | None = _slot(cursor)
    entries: list[KeyEntry] = []
    while at is not None and len(entries) < page_size:
        chunks, at = pool.page(at, page_size - len(entries))
        for chunk in chunks:
            key = _object_key(chunk.record)
            if key is not None and model_name in (None, key.model_name):
                entries.append(KeyEntry(key=key, size_bytes=chunk.size))
    return KeyListPage(entries=tuple(entries), next_page_token=None if at is None else str(at))


def _slot(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdecimal() and int(cursor) < 1 << 32):
        raise ValueError(f"{cursor!r} is no cursor of this adapter: give the last page's token")
    return int(cursor)


def _object_key(record: bytes) -> EncodedObjectKey | None:
    fields = describe(record)
    if fields["kind"] != "object":
        return None
    return EncodedObjectKey(
        chunk_hash_hex=fields["chunk_hash"],
        model_name=fields["model"],
        kv_rank=fields["kv_rank"],
        object_group_id=fields["object_group_id"],
        cache_salt=fields["cache_salt"],
    )
