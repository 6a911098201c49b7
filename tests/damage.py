"""Damage to the metadata of a pool file."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from pool_layout import LINE, Layout, descriptor_of, layout_of, ready_slots


def targets(path: Path, layout: Layout) -> dict[str, list[range]]:
    """The metadata that carries something, by kind: byte ranges in the file."""
    image = path.read_bytes()
    page = layout.hosts
    claims = page + 4096
    ready = ready_slots(layout, image)
    used = []
    for slot in ready:
        record, meta = struct.unpack_from("<HH", image, layout.hot + slot * LINE + 52)
        cold = layout.cold + slot * layout.record_bytes
        used.append(range(cold, cold + record + meta))
    owned = [e for e in range(layout.extents) if image[claims + e] == 3]
    lanes = range(layout.index, layout.index + layout.buckets * layout.max_hosts * LINE, 8)
    return {
        "superblock": [range(0, 4092)],
        "host page": [range(page, claims)],
        "claims": [range(claims + e, claims + e + 1) for e in owned],
        "all claims": [range(claims, claims + layout.extents)],
        "lanes": [range(at, at + 8) for at in lanes if image[at : at + 8] != bytes(8)],
        "free lanes": [range(at, at + 8) for at in lanes if image[at : at + 8] == bytes(8)],
        "headers": [
            range(layout.headers + e * LINE, layout.headers + e * LINE + 24) for e in owned
        ],
        "all headers": [range(layout.headers, layout.headers + layout.extents * LINE)],
        "words": [range(layout.hot + s * LINE, layout.hot + s * LINE + 8) for s in ready],
        "hot lines": [range(layout.hot + s * LINE, layout.hot + (s + 1) * LINE) for s in ready],
        "all hot lines": [range(layout.hot, layout.hot + layout.slots * LINE)],
        "records": used,
        "stamps": [range(layout.stamps, layout.stamps + 4 * layout.slots * layout.max_hosts)],
        "anywhere": [range(layout.metadata_bytes)],
    }


def flip_one(path: Path, places: list[range], rng: random.Random) -> str:
    """Flips one bit, or changes one byte, of these ranges, if any; says what it did."""
    if not places:
        return "nothing to damage"
    place = rng.choice(places)
    at = rng.choice(place)
    flip_bit = rng.random() < 0.7
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        old = file.read(1)[0]
        new = old ^ 1 << rng.randrange(8) if flip_bit else (old + rng.randrange(1, 256)) % 256
        file.seek(at)
        file.write(bytes([new]))
    return f"byte {at} (of {place.start}..{place.stop}): {old:#04x} -> {new:#04x}"


def payload_of(path: Path, record: bytes) -> range:
    """Where the bytes of a chunk lie in the file of a pool of one device."""
    image = path.read_bytes()
    layout = layout_of(image)
    found = (descriptor_of(layout, image, slot) for slot in ready_slots(layout, image))
    (chunk,) = (descriptor for descriptor in found if descriptor.record == record)
    extent = layout.metadata_bytes + chunk.slot // layout.slots_per_extent * layout.extent_size
    return range(extent + chunk.offset, extent + chunk.offset + chunk.size)


def flip_bit(path: Path, at: int, bit: int) -> None:
    """Flips bit ``bit`` of the byte at ``at``."""
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ 1 << bit]))
