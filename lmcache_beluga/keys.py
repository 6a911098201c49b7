"""LMCache's keys as records, and the way LMCache hashes prompts as a string.

A *record* is the canonical msgpack form of one key: two keys of LMCache are equal if and only if
their records are the same bytes, on every machine and in every process. The pool addresses a chunk
by the record's 128-bit fingerprint, stores the record itself next to the chunk, and compares it.

A record is ``msgpack.packb(values, use_bin_type=True)`` of one of these tuples::

    CacheEngineKey       (FORM, 1, model_name, world_size, worker_id, dtype, tags, chunk_hash)
    LayerCacheEngineKey  (FORM, 2, model_name, world_size, worker_id, dtype, tags, chunk_hash,
                          layer_id)
    ObjectKey            (FORM, 3, model_name, kv_rank, object_group_id, cache_salt, chunk_hash)

- ``dtype`` is LMCache's name of the torch dtype, such as ``"bfloat16"``.
- ``tags`` is None, or the pairs of name and value in their order, as LMCache compares them. The
  rest of ``request_configs`` takes no part in a key's equality, and none in its record.
- An integer outside [-2**63, 2**64) is extension type 1: its shortest big-endian two's complement.
- Python compares numbers by value (``1 == 1.0 == True``): each has the form of the integer that it
  equals.

The pool reads keys natively, in batches (``native/bindings_keys.cpp``). This module is the
reference that the native reader is tested against, and the way back from a record to something
people can read.
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard

import msgpack

from .errors import InvalidArgumentError

FORM: Final = 1
"""Version of the record form: the first value of every record."""

WIDE_INT: Final = 1
"""msgpack extension type of an integer that msgpack itself cannot hold."""

Kind = Literal["chunk", "layer", "object", "opaque"]

# The second value of a record: which of LMCache's key types it was made from.
_KINDS: Final[dict[str, tuple[int, Kind]]] = {
    "CacheEngineKey": (1, "chunk"),
    "LayerCacheEngineKey": (2, "layer"),
    "ObjectKey": (3, "object"),
}
_ENGINE_FIELDS: Final = frozenset(
    (
        "model_name",
        "world_size",
        "worker_id",
        "chunk_hash",
        "dtype",
        "request_configs",
        "tags",
        "_dtype_str",
    )
)
_FIELDS: Final = {
    "CacheEngineKey": _ENGINE_FIELDS,
    "LayerCacheEngineKey": _ENGINE_FIELDS | {"layer_id"},
    "ObjectKey": frozenset(
        ("chunk_hash", "model_name", "kv_rank", "object_group_id", "cache_salt")
    ),
}


def record(key: object) -> bytes:
    """The record of an LMCache key; ``bytes`` are a record already and come back as they are.

    Raises:
        InvalidArgumentError: ``key`` is of no accepted type, or a field holds a value that no
            record can express (the message names the field or tag).
    """
    if isinstance(key, bytes):
        if not key:
            raise InvalidArgumentError("a key is empty bytes")
        return bytes(key)
    name = type(key).__name__
    declared = getattr(type(key), "__dataclass_fields__", None)
    if name not in _KINDS or declared is None:
        raise InvalidArgumentError(
            f"a key is of type {name}: a key is an LMCache CacheEngineKey, LayerCacheEngineKey or "
            "ObjectKey, or bytes (a record itself)"
        )
    if set(declared) != _FIELDS[name]:
        # A field that this form leaves out might tell two keys apart.
        raise InvalidArgumentError(
            f"{name} has other fields than lmcache-beluga knows: "
            f"{sorted(set(declared) ^ _FIELDS[name])}"
        )
    kind, _ = _KINDS[name]
    values: tuple[object, ...]
    if name == "ObjectKey":
        values = (
            _text(key, "model_name"),
            _integer(key, "kv_rank"),
            _integer(key, "object_group_id"),
            _text(key, "cache_salt"),
            _digest(key, "chunk_hash"),
        )
    else:
        values = (
            _text(key, "model_name"),
            _integer(key, "world_size"),
            _integer(key, "worker_id"),
            _text(key, "_dtype_str"),
            _tags(getattr(key, "tags")),  # noqa: B009
            _hash(key, "chunk_hash"),
        )
        if name == "LayerCacheEngineKey":
            values += (_integer(key, "layer_id"),)
    return bytes(msgpack.packb((FORM, kind, *values), use_bin_type=True))


def _text(key: object, field: str) -> str:
    return _checked_text(getattr(key, field), field)


def _checked_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{field} is {type(value).__name__}, not str")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{field} has a lone surrogate: it is not valid Unicode text"
        ) from None
    return value


def _integer(key: object, field: str) -> object:
    value = getattr(key, field)
    try:
        return _packed_integer(operator.index(value))
    except TypeError:
        raise InvalidArgumentError(f"{field} is {type(value).__name__}, not int") from None


def _packed_integer(value: int) -> object:
    value = int.__int__(value)  # bool and other subclasses: their plain value
    if -(2**63) <= value < 2**64:
        return value
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return msgpack.ExtType(WIDE_INT, value.to_bytes(size, "big", signed=True))


def _digest(key: object, field: str) -> bytes:
    value = getattr(key, field)
    if not isinstance(value, bytes):
        raise InvalidArgumentError(f"{field} is {type(value).__name__}, not bytes")
    return value


def _hash(key: object, field: str) -> object:
    return _digest(key, field) if isinstance(getattr(key, field), bytes) else _integer(key, field)


def _tags(tags: object) -> object:
    if tags is None:
        return None
    if not isinstance(tags, tuple):
        raise InvalidArgumentError(f"tags is {type(tags).__name__}, not tuple")
    pairs = []
    for tag in tags:
        if not isinstance(tag, tuple) or len(tag) != 2:
            raise InvalidArgumentError("tags holds something else than pairs of name and value")
        name = _checked_text(tag[0], "the name of a tag")
        try:
            pairs.append((name, _tag_value(tag[1])))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"tag '{name}': {error}") from None
    return tuple(pairs)


def _tag_value(value: object) -> object:
    if isinstance(value, str):
        return _checked_text(value, "the value of a tag")
    if isinstance(value, int):
        return _packed_integer(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise InvalidArgumentError("the value of a tag is NaN, which equals nothing")
        return _packed_integer(int(value)) if value.is_integer() else float(value)
    if value is None or isinstance(value, bytes):
        return value
    raise InvalidArgumentError(
        f"the value of a tag is {type(value).__name__}, not str, int, float, bool, bytes or None"
    )


# ---- back from a record ------------------------------------------------------------

_NAMES: Final[dict[int, tuple[Kind, tuple[str, ...]]]] = {
    1: ("chunk", ("model", "world_size", "worker_id", "dtype", "tags", "chunk_hash")),
    2: ("layer", ("model", "world_size", "worker_id", "dtype", "tags", "chunk_hash", "layer_id")),
    3: ("object", ("model", "kv_rank", "object_group_id", "cache_salt", "chunk_hash")),
}
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "model": str,
    "dtype": str,
    "cache_salt": str,
    "tags": (tuple, type(None)),
    "chunk_hash": (int, bytes),
}


def describe(record: bytes) -> dict[str, Any]:
    """What a record says, for people and for JSON.

    Returns ``kind`` and the key's fields by name: ``model``, ``world_size``, ``worker_id``,
    ``dtype``, ``tags`` (a dict; bytes in hex), ``chunk_hash`` (hex), ``layer_id``; for an object
    key ``kv_rank``, ``object_group_id`` and ``cache_salt``. What is not the record of an LMCache
    key, a user's own bytes or garbage, has kind ``"opaque"`` and ``record`` (hex). Never raises.
    """
    fields = _parse(record)
    if fields is None:
        return {"kind": "opaque", "record": record.hex()}
    chunk_hash = fields["chunk_hash"]
    fields["chunk_hash"] = chunk_hash.hex() if isinstance(chunk_hash, bytes) else f"{chunk_hash:x}"
    if fields.get("tags") is not None:
        fields["tags"] = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in fields["tags"]
        }
    return fields


def kind(record: bytes) -> Kind:
    """Which key a record was made from: see ``describe``."""
    fields = _parse(record)
    return "opaque" if fields is None else fields["kind"]


def _parse(record: bytes) -> dict[str, Any] | None:
    try:
        values = msgpack.unpackb(record, use_list=False, ext_hook=_unpack_wide)
        canonical = msgpack.packb(_repack(values), use_bin_type=True)
    except Exception:  # whatever msgpack says of bytes that are none of ours
        return None
    if canonical != record or not isinstance(values, tuple) or len(values) < 2:
        return None
    if not _is_int(values[0]) or values[0] != FORM or not _is_int(values[1]):
        return None
    kind, names = _NAMES.get(values[1], (None, ()))
    if kind is None or len(values) != 2 + len(names):
        return None
    fields: dict[str, Any] = {"kind": kind}
    for name, value in zip(names, values[2:], strict=True):
        if not isinstance(value, _TYPES.get(name, int)) or isinstance(value, bool):
            return None
        fields[name] = value
    for tag in fields.get("tags") or ():
        if not isinstance(tag, tuple) or len(tag) != 2 or not isinstance(tag[0], str):
            return None
        if not (tag[1] is None or isinstance(tag[1], str | int | float | bytes)):
            return None
    return fields


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _unpack_wide(code: int, data: bytes) -> int:
    if code != WIDE_INT:
        raise ValueError("unknown extension type")
    return int.from_bytes(data, "big", signed=True)


def _repack(value: object) -> object:
    if _is_int(value):
        return _packed_integer(value)
    return tuple(map(_repack, value)) if isinstance(value, tuple) else value


# ---- how LMCache hashes prompts --------------------------------------------------


def hash_scheme(config: Any, metadata: Any = None) -> str:
    """How LMCache turns prompts into chunk hashes in this process, as a short string.

    Two processes get the same string if they hash prompts alike, and different ones if they do not.
    ``"lmcache/chunk=256/builtin/0f3a0f3a0f3a0f3a"`` names the chunk size in tokens (with blending
    ``segments=``, a fingerprint of the separator), the hash function that is really in use, and 64
    bits in hex that LMCache's own token database made of a fixed prompt: whatever else makes hashes
    differ (a random seed, another version) shows there.

    Args:
        config: the engine's ``LMCacheEngineConfig``.
        metadata: the engine's ``LMCacheMetadata``, if there is one.

    Imports LMCache. What LMCache and vLLM hash with is the same after the call as before.
    """
    from lmcache.v1 import token_database

    # Building a token database seeds the hash chain: at random, with vLLM and no PYTHONHASHSEED.
    # If this process has a seed that it hashes with (LMCache's is 0 before), that one has to stay.
    vllm = sys.modules.get("vllm.v1.core.kv_cache_utils")
    vllm_seed = getattr(vllm, "NONE_HASH", None)
    seed = token_database.NONE_HASH
    database = token_database.ChunkedTokenDatabase(config, metadata)
    if vllm is not None and vllm_seed is not None and seed != 0:
        vllm.NONE_HASH = vllm_seed  # type: ignore[attr-defined]
        token_database.NONE_HASH = seed

    if config.enable_blending:
        # A segment is hashed as the first chunk of a prompt is, whatever its length.
        separator = hashlib.sha256(config.blend_special_str.encode()).hexdigest()[:8]
        cut = f"segments={separator}"
        database.chunk_size = 256
    else:
        cut = f"chunk={config.chunk_size}"
    prompt = [(i * 2654435761) % 128_000 for i in range(2 * database.chunk_size)]
    hashes = [found[2] for found in database.process_tokens(tokens=prompt, make_key=False)]
    probe = hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]
    function = database.hash_func
    algorithm = "builtin" if function is hash else getattr(function, "__name__", "unnamed")
    return f"lmcache/{cut}/{algorithm}/{probe}"


@dataclass(frozen=True)
class _Scheme:
    cut: str  # "chunk" or "segments"
    size: str
    algorithm: str
    probe: str

    @classmethod
    def parse(cls, text: str) -> _Scheme | None:
        match = re.fullmatch(r"lmcache/(chunk|segments)=(\w+)/([^/]+)/([0-9a-f]{16})", text)
        return cls(*match.groups()) if match else None


def hash_scheme_advice(mine: str, pools: str) -> str:
    """What to change when this process's ``hash_scheme`` is not that of the pool.

    Returns sentences for an error message, the likeliest cause first. Empty if the two are equal.
    """
    if mine == pools:
        return ""
    here, there = _Scheme.parse(mine), _Scheme.parse(pools)
    if here is None or there is None:
        return (
            f"The pool's chunks are keyed by '{pools}', this process's by '{mine}': "
            "attach with the key scheme that the pool was formatted with, or use another pool."
        )
    advice = []
    if here.cut != there.cut:
        state = "true" if there.cut == "segments" else "false"
        advice.append(f"Set enable_blending: {state} in LMCache's configuration, as for the pool.")
    elif here.size != there.size and here.cut == "chunk":
        advice.append(
            f"chunk_size is {here.size} here and {there.size} in the pool: "
            f"set chunk_size: {there.size} in LMCache's configuration."
        )
    elif here.size != there.size:
        advice.append("blend_special_str is not the one that the pool's chunks were cut by.")
    if here.algorithm != there.algorithm:
        advice.append(
            f"The hash function is {here.algorithm} here and {there.algorithm} in the pool: set "
            f"pre_caching_hash_algorithm: {there.algorithm} in LMCache's configuration (all but "
            "builtin come with vLLM; LMCache falls back to builtin where it cannot import them)."
        )
    if not advice:
        advice.append(_seed_advice(here.algorithm))
    advice.append("Or use another pool, or format this one anew.")
    return " ".join(advice)


def _seed_advice(algorithm: str) -> str:
    seed = os.environ.get("PYTHONHASHSEED")
    every = "in the environment of every process that shares the pool, before it starts"
    if seed is None or seed == "random":
        return (
            f"PYTHONHASHSEED is not set, so the {algorithm} hashes of a prompt differ from process "
            f"to process: set PYTHONHASHSEED=0 {every}."
        )
    return (
        f"PYTHONHASHSEED is {seed} here, and the {algorithm} hashes differ from the pool's all the "
        f"same: the pool was formatted under another PYTHONHASHSEED (or none), or with another "
        f"version of vLLM, LMCache or Python. Set the same PYTHONHASHSEED {every}."
    )
