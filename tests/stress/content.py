"""The keys of the stress test and the bytes that belong to each: any read can be judged exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Lengths that a chunk may have, in bytes. They fall into several slot sizes, so that extents are
#: cut anew all the time; some do not fill their slot, some are not a multiple of a cache line.
LENGTHS = (1, 900, 4096, 9_001, 30_000, 65_536, 100_003, 200_000, 262_144)

#: Keys that every worker stores, reads, pins and removes.
SHARED_KEYS = 320
#: Keys of one seat that no other worker stores or removes.
PRIVATE_KEYS = 12

_STRIDE = 8


@dataclass(frozen=True)
class Chunk:
    """What a read must return: a key's number and one of the lengths it was stored with."""

    number: int
    size: int


class Keyspace:
    """All keys, and the bytes of each at each length.

    A payload is a slice of one random block; where it begins depends on key and length, so that two
    chunks have no 8 bytes in common at the same place.
    """

    def __init__(self, seats: int) -> None:
        self._numbers = SHARED_KEYS + seats * PRIVATE_KEYS
        size = self._numbers * len(LENGTHS) * _STRIDE + max(LENGTHS)
        self._block = np.random.default_rng(20_260).integers(0, 256, size, dtype=np.uint8)
        self._block.flags.writeable = False
        self._records = [b"stress/%05d" % number for number in range(self._numbers)]
        self._number_of = {record: number for number, record in enumerate(self._records)}

    @property
    def records(self) -> list[bytes]:
        """Every key."""
        return self._records

    def record(self, number: int) -> bytes:
        return self._records[number]

    def number(self, record: bytes) -> int:
        """Raises KeyError for a record that nobody stored."""
        return self._number_of[record]

    def private(self, seat: int) -> range:
        """Numbers of the keys that belong to a seat."""
        first = SHARED_KEYS + seat * PRIVATE_KEYS
        return range(first, first + PRIVATE_KEYS)

    def payload(self, chunk: Chunk) -> npt.NDArray[np.uint8]:
        """The bytes of a chunk: a read-only uint8 array of its size."""
        at = (chunk.number * len(LENGTHS) + LENGTHS.index(chunk.size)) * _STRIDE
        return self._block[at : at + chunk.size]

    def meta(self, chunk: Chunk) -> bytes:
        """The metadata stored with a chunk."""
        return b"%d:%d" % (chunk.number, chunk.size) if chunk.number % 3 else b""

    def fault(
        self, number: int, data: npt.NDArray[np.uint8], meta: bytes | None = None
    ) -> str | None:
        """What is wrong with what was read under a key; None if it is exactly what was stored.

        ``meta``: the metadata read with it, None when the read does not tell.
        """
        if data.size not in LENGTHS:
            return f"key {number}: nobody stores {data.size} bytes"
        chunk = Chunk(number, data.size)
        wrong = np.flatnonzero(data != self.payload(chunk))
        if wrong.size:
            first, last = int(wrong[0]), int(wrong[-1])
            return (
                f"key {number}, {data.size} bytes: {wrong.size} are wrong, from {first} to {last}"
                f"{self._origin(data, first)}"
            )
        if meta is not None and meta != self.meta(chunk):
            return f"key {number}, {data.size} bytes: its metadata is {meta!r}"
        return None

    def _origin(self, data: npt.NDArray[np.uint8], at: int) -> str:
        """Whose bytes these are, for the report."""
        piece = data[at : at + 16].tobytes()
        found = self._block.tobytes().find(piece) - at
        if found < 0 or found % _STRIDE or len(piece) < 16:
            return ""
        number, length = divmod(found // _STRIDE, len(LENGTHS))
        return f"; they are those of key {number}, {LENGTHS[length]} bytes"
