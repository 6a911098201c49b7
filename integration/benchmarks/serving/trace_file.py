"""Request traces as JSON lines in Mooncake's format.

One request a line: ``timestamp`` in milliseconds, ``input_length`` and ``output_length`` in tokens,
and ``hash_ids``, one for each block of 512 tokens of the prompt, the last of which may be shorter.
Equal ids are equal blocks at the same place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 512


class TraceError(ValueError):
    """A line that is no request; the text names it, and what to do."""


@dataclass(frozen=True)
class TraceRequest:
    """A line. The time is in milliseconds, lengths are in tokens."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace(path: Path, limit: int | None = None, skip: int = 0) -> list[TraceRequest]:
    """The first ``limit`` requests after ``skip`` of a file.

    Raises:
        TraceError: a line is malformed, or there are no requests.
        OSError: the file cannot be read.
    """
    found: list[TraceRequest] = []
    number, passed = 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(found) >= limit:
                break
            if not line.strip():
                continue
            try:
                request = _request(line)
                if found and request.timestamp < found[-1].timestamp:
                    raise _Malformed(
                        f"timestamp {request.timestamp:g} is before the last one's, "
                        f"{found[-1].timestamp:g}",
                        "sort the lines by timestamp",
                    )
            except _Malformed as error:
                raise TraceError(f"{path}, line {number}: {error.what}: {error.fix}") from None
            if passed < skip:
                passed += 1
            else:
                found.append(request)
    if not found:
        raise TraceError(
            f"{path} has no requests in {number} lines after the first {skip}: "
            "give a file with one JSON object a line, and skip fewer"
        )
    return found


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> None:
    """One line for each. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            file.write(json.dumps(asdict(request)) + "\n")


def blocks_of(tokens: int) -> int:
    """How many ids a prompt has."""
    return -(-tokens // BLOCK_TOKENS)


class _Malformed(Exception):
    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def _request(line: bytes) -> TraceRequest:
    try:
        value = json.loads(line)
    except ValueError as error:  # json's and unicode's both are
        raise _Malformed(f"no JSON ({error})", "write one JSON object a line") from None
    if not isinstance(value, dict):
        raise _Malformed("no JSON object", 'write {"timestamp": ..., ...}')
    timestamp = _field(value, "timestamp")
    if type(timestamp) not in (int, float) or not 0 <= timestamp < math.inf:
        raise _Malformed(f"timestamp {timestamp!r}", "give milliseconds from 0 on")
    request = TraceRequest(
        timestamp, _length(value, "input_length"), _length(value, "output_length"), _ids(value)
    )
    wanted = blocks_of(request.input_length)
    if len(request.hash_ids) != wanted:
        raise _Malformed(
            f"{len(request.hash_ids)} hash_ids for {request.input_length} tokens",
            f"give one for each {BLOCK_TOKENS} tokens, {wanted}",
        )
    return request


def _field(value: dict[str, Any], name: str) -> Any:
    if name not in value:
        raise _Malformed(f"no {name}", f"add it; the line has {', '.join(value) or 'nothing'}")
    return value[name]


def _length(value: dict[str, Any], name: str) -> int:
    length = _field(value, name)
    if type(length) is not int or length < 1:
        raise _Malformed(f"{name} {length!r}", "give a number of tokens, at least 1")
    return length


def _ids(value: dict[str, Any]) -> tuple[int, ...]:
    ids = _field(value, "hash_ids")
    if not isinstance(ids, list) or any(type(one) is not int or one < 0 for one in ids):
        raise _Malformed("hash_ids is no list of ids", "give whole numbers from 0 on")
    return tuple(ids)
