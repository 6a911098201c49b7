"""Makes the golden image: a small pool of on-pool format version 1, and what must be read from it.

    python tests/golden/make.py

Run it once for each format version. The image that is committed stays as it is: it stands for the
pools that are out there, and whatever is changed later must go on reading it.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmcache_beluga import Pool
from lmcache_beluga._native import encode_keys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from pool_layout import crc32c, layout_of  # noqa: E402

IMAGE = HERE / "pool-v1.img.gz"
MANIFEST = HERE / "pool-v1.json"
FORMAT: dict[str, Any] = {
    "size": 1 << 20,
    "max_hosts": 2,
    "extent_size": 1 << 16,
    "chunk_hint": 4096,
    "key_scheme": "lmcache/sha256_cbor/256",
}


@dataclass(frozen=True)
class Chunk:
    """One chunk of the image. ``key``: bytes as hex, or the fields of a key of LMCache."""

    key: str | dict[str, Any]
    size: int
    depth: int = 0
    meta: str = ""


ENGINE = {"model_name": "meta-llama/Llama-3.1-8B", "world_size": 4, "worker_id": 2}
CHUNKS = [
    Chunk(b"plain key".hex(), 1),
    Chunk(b"\x00\xff not text".hex(), 64, 1, b"m".hex()),
    Chunk(bytes(range(256)).hex(), 1000, 2, bytes(range(192)).hex()),  # a full descriptor
    Chunk({"kind": "CacheEngineKey", **ENGINE, "chunk_hash": 2**63 + 12345}, 4096, 3, b"kv".hex()),
    Chunk({"kind": "CacheEngineKey", **ENGINE, "chunk_hash": -7}, 5000, 4, b"kv".hex()),
    Chunk(
        {"kind": "CacheEngineKey", **ENGINE, "chunk_hash": 99, "tags": {"lmcache.tag.user": "u1"}},
        5000,
        5,
    ),
    Chunk({"kind": "LayerCacheEngineKey", **ENGINE, "chunk_hash": 99, "layer_id": 31}, 20_000, 6),
    Chunk(
        {
            "kind": "ObjectKey",
            "chunk_hash": "00112233445566778899aabbccddeeff",
            "model_name": "meta-llama/Llama-3.1-8B",
            "kv_rank": 1 << 40,
            "object_group_id": 3,
            "cache_salt": "tenant",
        },
        65_536,
        4095,
        b"a whole extent".hex(),
    ),
]
#: Stored and removed again, so that some slots of the image have had a chunk before.
REMOVED = [Chunk(f"removed {i}".encode().hex(), 4096) for i in range(3)]


def payload(number: int, size: int) -> bytes:
    """The data of the image's chunk ``number``: no two chunks share 64 bytes."""
    line = b"".join((number * 1_000_003 + i * 97).to_bytes(4, "little") for i in range(16))
    return b"".join(i.to_bytes(4, "little") + line[4:] for i in range((size + 63) // 64))[:size]


def key_of(chunk: Chunk) -> Any:
    """The key as a user has it."""
    if isinstance(chunk.key, str):
        return bytes.fromhex(chunk.key)
    import torch
    from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
    from lmcache.v1.distributed.api import ObjectKey

    fields = dict(chunk.key)
    kind = fields.pop("kind")
    if kind == "ObjectKey":
        return ObjectKey(**{**fields, "chunk_hash": bytes.fromhex(fields["chunk_hash"])})
    tags = fields.pop("tags", None)
    layer = (fields.pop("layer_id"),) if kind == "LayerCacheEngineKey" else ()
    make = LayerCacheEngineKey if layer else CacheEngineKey
    return make(
        fields["model_name"],
        fields["world_size"],
        fields["worker_id"],
        fields["chunk_hash"],
        torch.bfloat16,
        tags,
        *layer,
    )


def fill(pool: Pool) -> None:
    """Stores and removes what the image has, in the order that it has it."""
    for number, chunk in enumerate(REMOVED):
        pool.put(key_of(chunk), payload(100 + number, chunk.size))
    pool.remove([key_of(chunk) for chunk in REMOVED[:2]])
    for number, chunk in enumerate(CHUNKS):
        pool.put(
            key_of(chunk),
            payload(number, chunk.size),
            meta=bytes.fromhex(chunk.meta),
            depth=chunk.depth,
        )
    pool.remove([key_of(chunk) for chunk in REMOVED])


def anonymous(image: bytes) -> bytes:
    """The image without the name and the id of the machine that made it."""
    page = layout_of(image).hosts
    identity = image[page : page + 16] + bytes(16) + image[page + 32 : page + 56]
    identity += struct.pack("<I", crc32c(identity))
    name = b"golden".ljust(64, b"\0")
    return b"".join(
        (image[:page], identity, image[page + 60 : page + 128], name, image[page + 192 :])
    )


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "pool"
        with Pool.open(path, **FORMAT) as pool:
            fill(pool)
            slots = {entry.record.hex(): entry.slot for entry in pool.keys()}  # noqa: SIM118
        image = anonymous(path.read_bytes())
    records = [record.hex() for record in encode_keys([key_of(chunk) for chunk in CHUNKS])]
    IMAGE.write_bytes(gzip.compress(image, 9, mtime=0))
    chunks = [
        {**asdict(chunk), "record": record, "slot": slots[record]}
        for chunk, record in zip(CHUNKS, records, strict=True)
    ]
    MANIFEST.write_text(json.dumps({"format": FORMAT, "chunks": chunks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
