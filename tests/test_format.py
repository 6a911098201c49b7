"""On-pool format version 1 stays what it is: old pools are read, new ones are written the same."""

from __future__ import annotations

import gzip
import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pool_layout import LINE, READY, Layout, crc32c, descriptor_of, layout_of, ready_slots

from lmcache_beluga import Pool, keys
from lmcache_beluga._native import encode_keys, fingerprints

GOLDEN = Path(__file__).parent / "golden"


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make = load_make()
MANIFEST = json.loads((GOLDEN / "pool-v1.json").read_text())
CHUNKS: list[dict[str, Any]] = MANIFEST["chunks"]
#: XXH3-64 of the key scheme's text, made odd; XXH3-128 of a record.
KEY_SCHEME = 2696675053117705741
PLAIN_KEY = 0x0AB7AEB296AA22FFAA2B5296D7041DFC


@pytest.fixture(scope="module")
def image() -> bytes:
    return gzip.decompress((GOLDEN / "pool-v1.img.gz").read_bytes())


@pytest.fixture(scope="module")
def layout(image: bytes) -> Layout:
    return layout_of(image)


# ---- reading what is out there


@pytest.mark.parametrize("host", [0, 1], ids=["its owner", "another host"])
def test_every_chunk_is_read(pool_path: Path, image: bytes, host: int) -> None:
    pool_path.write_bytes(image)
    with Pool.attach(pool_path, host_id=host) as pool:
        records = [bytes.fromhex(chunk["record"]) for chunk in CHUNKS]
        assert pool.contains_prefix(records) == len(CHUNKS)
        for number, (chunk, record) in enumerate(zip(CHUNKS, records, strict=True)):
            with pool.get(record) as view:
                assert view.array.tobytes() == make.payload(number, chunk["size"])
                assert view.meta == bytes.fromhex(chunk["meta"])
                assert view.record == record
                assert view.slot == chunk["slot"]
        walked = list(pool.keys())
        assert {(e.record, e.depth, e.size, e.host) for e in walked} == {
            (record, chunk["depth"], chunk["size"], 0)
            for chunk, record in zip(CHUNKS, records, strict=True)
        }
        report = pool.check()
        assert report.ok, report.errors
        assert report.chunks == len(CHUNKS)


def test_the_keys_of_lmcache_are_still_the_same_records() -> None:
    for chunk in make.CHUNKS:
        key = make.key_of(chunk)
        (stored,) = (c["record"] for c in CHUNKS if c["key"] == chunk.key)
        assert encode_keys([key])[0].hex() == stored
        if not isinstance(key, bytes):
            assert keys.record(key).hex() == stored


def test_the_image_can_be_written_to(pool_path: Path, image: bytes) -> None:
    pool_path.write_bytes(image)
    with Pool.attach(pool_path) as pool:
        pool.put(b"new", b"x" * 5000)
        assert pool.get(b"new").array.tobytes() == b"x" * 5000
        assert pool.contains_prefix([bytes.fromhex(c["record"]) for c in CHUNKS]) == len(CHUNKS)
        assert pool.clear() == len(CHUNKS) + 1
        assert pool.check().ok


# ---- every field at its place


def test_superblock(image: bytes, layout: Layout) -> None:
    assert image[:8] == b"BELUGA01"
    version, header_bytes = struct.unpack_from("<II", image, 8)
    assert (version, header_bytes) == (1, 4096)
    assert image[16:32] != bytes(16)  # uuid
    epoch, max_hosts, device_count = struct.unpack_from("<QII", image, 32)
    assert (epoch, max_hosts, device_count) == (1, 2, 1)
    extent_size, extents, slots = struct.unpack_from("<QII", image, 48)
    assert (extent_size, extents, slots) == (65_536, 7, 64)
    assert struct.unpack_from("<QQ", image, 64) == (1024, 128)  # min_slot, buckets
    record_bytes, visibility, payload, max_lease = struct.unpack_from("<4I", image, 80)
    assert (record_bytes, visibility, payload, max_lease) == (448, 0, 0, 120_000)
    (created,) = struct.unpack_from("<Q", image, 96)
    assert created > 1_600_000_000_000
    assert struct.unpack_from("<8Q", image, 104) == (
        4096,  # hosts
        8192,  # one host's pages
        20_480,  # index
        36_864,  # extent headers
        40_960,  # hot lines
        69_632,  # cold lines
        270_336,  # stamps
        327_680,  # metadata in all
    )
    assert struct.unpack_from("<I", image, 168) == (0,)  # which device this is
    assert image[192:384] == b"lmcache/sha256_cbor/256".ljust(192, b"\0")
    bytes_, payload_offset, first_extent, count = struct.unpack_from("<QQII", image, 384)
    assert (bytes_, payload_offset, first_extent, count) == (len(image), 327_680, 0, 7)
    assert image[416:4088] == bytes(4088 - 416)
    assert struct.unpack_from("<I", image, 4088) == (crc32c(image[8:4088]),)


def test_host_pages(image: bytes, layout: Layout) -> None:
    page = image[layout.hosts : layout.hosts + layout.host_stride]
    state, incarnation, nonce = struct.unpack_from("<IIQ", page, 0)
    assert (state, incarnation) == (1, 1)
    assert nonce != 0
    assert page[16:32] == bytes(16)  # the machine, which the image does not tell
    assert struct.unpack_from("<QQ", page, 32) == (KEY_SCHEME, 1)  # and the epoch
    assert struct.unpack_from("<Q", page, 48)[0] > 1_600_000_000_000
    assert struct.unpack_from("<II", page, 56) == (crc32c(page[:56]), 0)
    tick, incarnation, epoch = struct.unpack_from("<IIQ", page, 64)
    assert tick > 0
    assert (incarnation, epoch) == (1, 1)
    assert page[128:192] == b"golden".ljust(64, b"\0")
    owned = sum(len(slots) > 0 for slots in by_extent(layout, image).values())
    claims = page[4096 : 4096 + layout.extents]
    assert claims.count(3) >= owned > 0
    assert set(claims) <= {0, 3}
    other = image[layout.hosts + layout.host_stride : layout.index]
    assert not any(other)


def by_extent(layout: Layout, image: bytes) -> dict[int, list[int]]:
    slots: dict[int, list[int]] = {extent: [] for extent in range(layout.extents)}
    for slot in ready_slots(layout, image):
        slots[slot // layout.slots_per_extent].append(slot)
    return slots


def test_extent_headers(image: bytes, layout: Layout) -> None:
    claims = image[layout.hosts + 4096 :]
    for extent in range(layout.extents):
        header = image[layout.headers + extent * LINE : layout.headers + (extent + 1) * LINE]
        slot_size, slots, owner, incarnation, crc = struct.unpack_from("<QIIII", header)
        if claims[extent] != 3:
            assert not any(header)
            continue
        assert slot_size == layout.extent_size // slots // LINE * LINE
        assert (owner, incarnation) == (0, 1)
        assert crc == crc32c(header[:20], extent + 1)
        assert not any(header[24:])


def test_descriptors_and_payload(image: bytes, layout: Layout) -> None:
    assert ready_slots(layout, image) == sorted(chunk["slot"] for chunk in CHUNKS)
    for number, chunk in enumerate(CHUNKS):
        descriptor = descriptor_of(layout, image, chunk["slot"])
        assert (descriptor.state, descriptor.process) == (READY, 0)
        assert descriptor.record.hex() == chunk["record"]
        assert descriptor.meta.hex() == chunk["meta"]
        assert (descriptor.size, descriptor.depth) == (chunk["size"], chunk["depth"])
        assert descriptor.checksum == 0
        assert descriptor.crc == descriptor.expected_crc()
        assert [descriptor.fingerprint] == fingerprints([descriptor.record])
        extent, index = divmod(chunk["slot"], layout.slots_per_extent)
        (slot_size,) = struct.unpack_from("<Q", image, layout.headers + extent * LINE)
        assert descriptor.offset == index * slot_size
        at = layout.metadata_bytes + extent * layout.extent_size + descriptor.offset
        assert image[at : at + chunk["size"]] == make.payload(number, chunk["size"])
    # The slot of a chunk that was removed has moved on by a generation.
    generations = [descriptor_of(layout, image, s).generation for s in range(layout.slots)]
    assert sorted(g for g in generations if g) == [1, 1, 1]


def test_the_fingerprint_is_xxh3(image: bytes, layout: Layout) -> None:
    """A constant of the format: XXH3-128, seed 0, of the record."""
    assert fingerprints([b"plain key"]) == [PLAIN_KEY]
    (chunk,) = (c for c in CHUNKS if c["record"] == b"plain key".hex())
    assert descriptor_of(layout, image, chunk["slot"]).fingerprint == PLAIN_KEY


def test_lanes(image: bytes, layout: Layout) -> None:
    entries = {}
    for bucket in range(layout.buckets):
        for host in range(layout.max_hosts):
            at = layout.index + (bucket * layout.max_hosts + host) * LINE
            for entry in struct.unpack_from("<8Q", image, at):
                if entry:
                    assert host == 0
                    entries[(entry & 0xFFFFFFFF) - 1] = bucket, entry >> 32
    expected = {}
    for slot in ready_slots(layout, image):
        fingerprint = descriptor_of(layout, image, slot).fingerprint
        expected[slot] = fingerprint % layout.buckets, fingerprint >> 96
    assert entries == expected


def test_stamps(image: bytes, layout: Layout) -> None:
    """Nobody leases anything in a pool at rest; the other host's stamps were never written."""
    stamps = struct.unpack_from(f"<{layout.slots * layout.max_hosts}I", image, layout.stamps)
    (tick,) = struct.unpack_from("<I", image, layout.hosts + 64)
    assert not any(stamps[layout.slots :])
    assert all(stamp == 0 or stamp - tick < 1000 for stamp in stamps)


# ---- writing the same


def test_the_same_chunks_are_written_at_the_same_places(pool_path: Path, image: bytes) -> None:
    """All that does not depend on time, on chance or on the machine is byte for byte the same."""
    with Pool.open(pool_path, **MANIFEST["format"]) as pool:
        make.fill(pool)
    ours, theirs = still(pool_path.read_bytes()), still(image)
    for name in ours:
        assert ours[name] == theirs[name], name


def still(image: bytes) -> dict[str, bytes]:
    """The parts of an image, without uuid, times, nonces and names."""
    layout = layout_of(image)
    superblock = bytearray(image[:4088])
    superblock[16:32] = bytes(16)
    superblock[96:104] = bytes(8)
    hot = bytearray(image[layout.hot : layout.cold])
    for at in range(0, len(hot), LINE):
        hot[at + 48 : at + 52] = bytes(4)  # the CRC covers the time
        hot[at + 56 : at + 60] = bytes(4)  # born
    claims = layout.hosts + 4096
    return {
        "superblock": bytes(superblock),
        "claims": image[claims : claims + layout.extents],
        "index": image[layout.index : layout.headers],
        "headers": image[layout.headers : layout.hot],
        "hot lines": bytes(hot),
        "cold lines": image[layout.cold : layout.stamps],
        "payload": image[layout.metadata_bytes :],
    }
