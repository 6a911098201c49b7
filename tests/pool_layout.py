"""Where things lie in a pool file of format version 1.

Offsets are those of native/layout.hpp, written down a second time on purpose: they must agree.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

LINE = 64
READY = 2


@dataclass(frozen=True)
class Layout:
    """The geometry that a superblock tells."""

    max_hosts: int
    extent_size: int
    extents: int
    slots_per_extent: int
    buckets: int
    record_bytes: int
    hosts: int
    host_stride: int
    index: int
    headers: int
    hot: int
    cold: int
    stamps: int
    metadata_bytes: int

    @property
    def slots(self) -> int:
        return self.extents * self.slots_per_extent


def layout_of(superblock: bytes) -> Layout:
    (max_hosts,) = struct.unpack_from("<I", superblock, 40)
    extent_size, extents, slots_per_extent, _min_slot, buckets, record_bytes = struct.unpack_from(
        "<QIIQQI", superblock, 48
    )
    places = struct.unpack_from("<8Q", superblock, 104)
    return Layout(max_hosts, extent_size, extents, slots_per_extent, buckets, record_bytes, *places)


def ready_slots(layout: Layout, image: bytes) -> list[int]:
    return [
        slot
        for slot in range(layout.slots)
        if struct.unpack_from("<Q", image, layout.hot + slot * LINE)[0] & 0xFF == READY
    ]


@dataclass(frozen=True)
class Descriptor:
    """A slot's descriptor as its bytes say."""

    slot: int
    generation: int
    process: int
    state: int
    fingerprint: int
    size: int
    #: Of the payload, from the extent's start.
    offset: int
    checksum: int
    crc: int
    depth: int
    record: bytes
    meta: bytes
    #: What the CRC is made of, but for the seed.
    hashed: bytes

    def expected_crc(self) -> int:
        seed = struct.pack("<QQ", self.slot, self.generation)
        return crc32c(seed + self.hashed)


def descriptor_of(layout: Layout, image: bytes, slot: int) -> Descriptor:
    at = layout.hot + slot * LINE
    word, low, high, size, offset, checksum = struct.unpack_from("<6Q", image, at)
    crc, record_bytes, meta_bytes, _born, depth = struct.unpack_from("<IHHII", image, at + 48)
    cold = layout.cold + slot * layout.record_bytes
    record = image[cold : cold + record_bytes]
    meta = image[cold + record_bytes : cold + record_bytes + meta_bytes]
    hashed = image[at + 8 : at + 48] + image[at + 52 : at + 64] + record + meta
    return Descriptor(
        slot=slot,
        generation=word >> 16,
        process=word >> 8 & 0xFF,
        state=word & 0xFF,
        fingerprint=high << 64 | low,
        size=size,
        offset=offset,
        checksum=checksum,
        crc=crc,
        depth=depth,
        record=record,
        meta=meta,
        hashed=hashed,
    )


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli), as iSCSI has it."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
