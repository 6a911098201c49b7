"""Keys as records: native reader against Python reference, both against LMCache's own `==`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types
from dataclasses import dataclass, make_dataclass
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
from lmcache.v1 import token_database
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.distributed.api import ObjectKey

from lmcache_beluga import _native, keys
from lmcache_beluga.errors import InvalidArgumentError

encode_keys = _native.encode_keys
fingerprints = _native.fingerprints

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def native(key: object) -> bytes:
    (record,) = encode_keys([key])
    return record


# Few values, on both sides of each boundary of the encoding, so that equal keys and keys that
# differ in one field both turn up often.
edges = [0, 1, 2, 127, 128, 255, 256, 2**16, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**100]
integers = st.sampled_from([*edges, *(-edge for edge in edges), True, False, -33, -(2**63) - 1])
texts = st.sampled_from(["", "a", "b", "a@b", "é", "字" * 20, "x" * 31, "x" * 32, MODEL, "y" * 300])
hashes = integers | st.integers() | st.binary(max_size=40) | st.sampled_from([b"", b"\x01", b"1"])
dtypes = st.sampled_from([torch.bfloat16, torch.float16, torch.half, torch.int8, torch.uint8])
numbers = [True, False, 0, 1, -0.0, 1.0, 0.5, 2.0**70, 2**70, math.inf, -math.inf]
tag_values = st.sampled_from([None, *numbers, "", "1", b"1", b""])
configs = st.none() | st.dictionaries(
    st.sampled_from(["lmcache.tag.a", "lmcache.tag.b", "lmcache.tag.", "lmcache.skip_save", "x"]),
    tag_values,
    max_size=3,
)
engine_fields = (texts, integers, integers, hashes, dtypes, configs)
engine_keys = st.builds(CacheEngineKey, *engine_fields)
layer_keys = st.builds(LayerCacheEngineKey, *engine_fields, layer_id=integers)
object_keys = st.builds(
    ObjectKey,
    st.binary(max_size=40),
    st.sampled_from(["", "a", "b", MODEL]),
    integers,
    st.sampled_from([0, 1, True, 2**70]),
    st.sampled_from(["", "a", "é"]),
)
any_key = engine_keys | layer_keys | object_keys


def near(key: Any) -> st.SearchStrategy[Any]:
    """Keys of the same type that share most fields with `key`, and so are often equal to it."""
    if isinstance(key, ObjectKey):
        same = (key.chunk_hash, key.model_name, key.kv_rank, key.object_group_id, key.cache_salt)
        fields = (st.binary(max_size=2), texts, integers, st.sampled_from([0, 1]), st.just("a"))
        build = ObjectKey
    else:
        same = (key.model_name, key.world_size, key.worker_id, key.chunk_hash, key.dtype)
        same += (key.request_configs,)
        fields = engine_fields
        build = CacheEngineKey
        if isinstance(key, LayerCacheEngineKey):
            build = lambda *values: LayerCacheEngineKey(*values[:6], layer_id=values[6])  # noqa: E731
            same += (key.layer_id,)
            fields = (*engine_fields, integers)
    choices = [st.sampled_from([0, 0, 0, 0, 0, 1]) for _ in same]

    def pick(values: tuple[Any, ...]) -> Any:
        taken = values[: len(same)]
        others = values[len(same) :]
        chosen = [b if take else a for a, b, take in zip(same, others, taken, strict=True)]
        if build is ObjectKey and "@" in chosen[1]:
            chosen[1] = "a"
        return build(*chosen)

    return st.tuples(*choices, *fields).map(pick)


@settings(max_examples=400, deadline=None)
@given(st.lists(any_key, max_size=12))
def test_native_records_are_the_reference(batch: list[object]) -> None:
    expected = [keys.record(key) for key in batch]
    assert encode_keys(batch) == expected
    assert encode_keys(tuple(batch)) == expected
    assert encode_keys(expected) == expected  # a record stands for itself
    assert fingerprints(batch) == fingerprints(expected)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_records_are_equal_exactly_when_the_keys_are(data: st.DataObject) -> None:
    a = data.draw(any_key)
    b = data.draw(near(a) | any_key)
    assert (native(a) == native(b)) == (a == b)
    assert (fingerprints([a]) == fingerprints([b])) == (a == b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"lmcache.tag.t": 1}, {"lmcache.tag.t": True}),
        ({"lmcache.tag.t": 1}, {"lmcache.tag.t": 1.0}),
        ({"lmcache.tag.t": 0}, {"lmcache.tag.t": -0.0}),
        ({"lmcache.tag.t": 2.0**80}, {"lmcache.tag.t": 2**80}),
        ({"lmcache.skip_save": True}, {}),
        ({"priority": 3}, None),
    ],
)
def test_equal_keys_that_look_different(a: dict[str, Any], b: dict[str, Any] | None) -> None:
    left, right = (CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, c) for c in (a, b))
    assert left == right
    assert native(left) == native(right)


def test_different_keys_that_look_alike() -> None:
    key = CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16)
    others = [
        LayerCacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, layer_id=0),
        CacheEngineKey(MODEL, 1, 0, b"\x07", torch.bfloat16),
        CacheEngineKey(MODEL, 0, 1, 7, torch.bfloat16),
        CacheEngineKey(MODEL, 1, 0, 7, torch.float16),
        CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, {"lmcache.tag.t": None}),
        CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, {"lmcache.tag.t": "1"}),
        CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, {"lmcache.tag.t": b"1"}),
        CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, {"lmcache.tag.t": 1}),
        CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, {"lmcache.tag.a": 1, "lmcache.tag.b": 2}),
        CacheEngineKey(MODEL, 1, 0, 7, torch.bfloat16, {"lmcache.tag.b": 2, "lmcache.tag.a": 1}),
    ]
    assert len({native(other) for other in [key, *others]}) == len(others) + 1


def test_the_form_is_what_the_documentation_says() -> None:
    """Pools outlive processes: these bytes may change only together with keys.FORM."""
    tags = {"lmcache.tag.user": "u", "lmcache.tag.n": 3}
    chunk = CacheEngineKey("m", 2, 1, -5, torch.bfloat16, tags)
    layer = LayerCacheEngineKey("m", 2, 1, 2**64, torch.int8, None, layer_id=9)
    item = ObjectKey(b"\x01\x02", "m", 4, 1, "salt")
    expected = [
        (1, 1, "m", 2, 1, "bfloat16", (("user", "u"), ("n", 3)), -5),
        (1, 2, "m", 2, 1, "int8", None, msgpack.ExtType(1, b"\x01" + bytes(8)), 9),
        (1, 3, "m", 4, 1, "salt", b"\x01\x02"),
    ]
    packed = [msgpack.packb(values, use_bin_type=True) for values in expected]
    assert encode_keys([chunk, layer, item]) == packed
    assert packed[0].hex() == "980101a16d0201a862666c6f617431369292a475736572a17592a16e03fb"
    assert fingerprints(packed[:1]) == [0x12C52AC9B43321D66C5D3A13B48DBEB1]


def test_a_batch_may_mix_everything() -> None:
    """Whatever the key before was, a record is what it is alone."""
    same = [CacheEngineKey(MODEL, 8, 3, h, torch.bfloat16) for h in range(4)]
    fresh = [CacheEngineKey("".join(MODEL), 8, h, 1, torch.bfloat16) for h in range(300, 304)]
    tagged = [CacheEngineKey(MODEL, 8, 3, 1, torch.int8, {"lmcache.tag.t": t}) for t in range(3)]
    layers = [LayerCacheEngineKey(MODEL, 8, 3, 1, torch.int8, layer_id=i) for i in range(3)]
    objects = [ObjectKey(bytes([i]), MODEL, 3) for i in range(3)]
    batch: list[object] = []
    for group in zip(same, fresh, tagged, layers, objects, strict=False):
        batch += [*group, b"opaque", *group]
    assert encode_keys(batch) == [native(key) for key in batch]
    assert encode_keys(iter(batch)) == encode_keys(batch)
    assert encode_keys([]) == []


def test_integers_of_numpy_count_as_integers() -> None:
    key = CacheEngineKey(MODEL, np.int64(1), np.uint8(0), np.uint64(2**63), torch.int8)
    assert native(key) == native(CacheEngineKey(MODEL, 1, 0, 2**63, torch.int8)) == keys.record(key)


@dataclass
class SomethingElse:
    chunk_hash: int = 1


Newer = make_dataclass(
    "ObjectKey",
    ["chunk_hash", "model_name", "kv_rank", "object_group_id", "cache_salt", "new_field"],
)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"", "empty bytes"),
        ("text", "a key is of type str: a key is an LMCache CacheEngineKey"),
        (None, "a key is of type NoneType"),
        (SomethingElse(), "a key is of type SomethingElse"),
        (Newer(b"", "m", 0, 0, "", 1), "ObjectKey has"),
        (type("CacheEngineKey", (), {})(), "CacheEngineKey"),
        (CacheEngineKey(MODEL, 1.0, 0, 1, torch.int8), "world_size is float, not int"),
        (CacheEngineKey(MODEL, 1, None, 1, torch.int8), "worker_id is NoneType, not int"),
        (CacheEngineKey(MODEL, 1, 0, "1", torch.int8), "chunk_hash is str, not int"),
        (CacheEngineKey(b"m", 1, 0, 1, torch.int8), "model_name is bytes, not str"),
        (CacheEngineKey("\ud800", 1, 0, 1, torch.int8), "model_name has a lone surrogate"),
        (LayerCacheEngineKey(MODEL, 1, 0, 1, torch.int8, layer_id="0"), "layer_id is str, not int"),
        (ObjectKey("ab", MODEL, 0), "chunk_hash is str, not bytes"),
        (
            CacheEngineKey(MODEL, 1, 0, 1, torch.int8, {"lmcache.tag.user": ["a"]}),
            "tag 'user': the value of a tag is list, not str, int, float, bool, bytes or None",
        ),
        (
            CacheEngineKey(MODEL, 1, 0, 1, torch.int8, {"lmcache.tag.t": math.nan}),
            "tag 't': the value of a tag is NaN",
        ),
        (
            CacheEngineKey(MODEL, 1, 0, 1, torch.int8, {"lmcache.tag.\udc00": 1}),
            "the name of a tag has a lone surrogate",
        ),
    ],
)
def test_what_is_no_key_is_refused_by_name(key: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as reference:
        keys.record(key)
    assert message in str(reference.value)
    with pytest.raises(InvalidArgumentError) as refused:
        encode_keys([b"fine", key])
    assert "keys[1]: " in str(refused.value)
    assert message in str(refused.value)


def test_a_key_on_its_own_is_not_a_sequence() -> None:
    for single in (b"record", "text", CacheEngineKey(MODEL, 1, 0, 1, torch.int8), 3):
        with pytest.raises(InvalidArgumentError, match="not a sequence of keys"):
            encode_keys(single)


def test_an_error_inside_an_attribute_comes_through() -> None:
    key = CacheEngineKey(MODEL, 1, 0, 1, torch.int8)
    del key.worker_id
    with pytest.raises(AttributeError, match="worker_id"):
        encode_keys([key])


def test_keys_are_not_kept_alive() -> None:
    tags = ("name", "value of its own")
    key = CacheEngineKey(MODEL, 1, 0, 2**70, torch.int8)
    key.tags = (tags,)
    before = sys.getrefcount(tags), sys.getrefcount(MODEL), sys.getrefcount(key)
    for _ in range(100):
        encode_keys([key, key])
    assert (sys.getrefcount(tags), sys.getrefcount(MODEL), sys.getrefcount(key)) == before


def test_describe_shows_each_kind() -> None:
    chunk = CacheEngineKey(MODEL, 8, 3, -255, torch.bfloat16, {"lmcache.tag.u": b"\xff"})
    assert keys.describe(native(chunk)) == {
        "kind": "chunk",
        "model": MODEL,
        "world_size": 8,
        "worker_id": 3,
        "dtype": "bfloat16",
        "tags": {"u": "ff"},
        "chunk_hash": "-ff",
    }
    layer = keys.describe(native(LayerCacheEngineKey(MODEL, 8, 3, 2**80, torch.int8, layer_id=5)))
    assert layer["kind"] == "layer"
    assert layer["layer_id"] == 5
    assert layer["tags"] is None
    assert layer["chunk_hash"] == f"{2**80:x}"
    assert keys.describe(native(ObjectKey(b"\xab\xcd", MODEL, 3, 1, "salt"))) == {
        "kind": "object",
        "model": MODEL,
        "kv_rank": 3,
        "object_group_id": 1,
        "cache_salt": "salt",
        "chunk_hash": "abcd",
    }
    assert keys.describe(b"my own key") == {"kind": "opaque", "record": b"my own key".hex()}


@given(any_key)
def test_describe_tells_the_kind_of_every_key(key: object) -> None:
    described = keys.describe(native(key))
    expected = {CacheEngineKey: "chunk", LayerCacheEngineKey: "layer", ObjectKey: "object"}
    assert described["kind"] == keys.kind(native(key)) == expected[type(key)]
    json.dumps(described)


@given(st.binary() | any_key.map(native).flatmap(lambda r: st.binary().map(lambda b: r[:7] + b)))
def test_describe_survives_garbage(garbage: bytes) -> None:
    json.dumps(keys.describe(garbage))
    assert keys.kind(garbage) in ("chunk", "layer", "object", "opaque")


# ---- other processes, and how they hash --------------------------------------------------

CHILD = """
import json, torch
from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.token_database import ChunkedTokenDatabase
from lmcache_beluga import keys
from lmcache_beluga._native import encode_keys, fingerprints
made = [
    CacheEngineKey("m", 8, 3, -7, torch.bfloat16, {"lmcache.tag.user": "u", "lmcache.tag.n": 2.0}),
    LayerCacheEngineKey("m", 8, 3, 2**77, torch.float16, None, layer_id=5),
    ObjectKey(b"digest", "m", 3, 1, "salt"),
]
config = LMCacheEngineConfig.from_defaults(chunk_size=16)
scheme = keys.hash_scheme(config)
again = keys.hash_scheme(config)
found = ChunkedTokenDatabase(config).process_tokens(tokens=list(range(64)), make_key=False)
print(json.dumps({
    "records": [record.hex() for record in encode_keys(made)],
    "fingerprints": fingerprints(made),
    "scheme": scheme, "again": again, "hashes": [item[2] for item in found],
}))
"""

# What vLLM does, reduced to what LMCache takes from it: a hash function, and a seed of the chain
# that is random unless PYTHONHASHSEED is set.
FAKE_VLLM = {
    "vllm/__init__.py": "",
    "vllm/v1/__init__.py": "",
    "vllm/v1/core/__init__.py": "",
    "vllm/utils/__init__.py": "",
    "vllm/utils/hashing.py": """
import hashlib
def sha256_cbor(value):
    return hashlib.sha256(repr(value).encode()).digest()
def get_hash_fn_by_name(name):
    return {"sha256_cbor": sha256_cbor, "builtin": hash}[name]
""",
    "vllm/v1/core/kv_cache_utils.py": """
import os
def init_none_hash(function):
    global NONE_HASH
    seed = os.getenv("PYTHONHASHSEED")
    NONE_HASH = os.urandom(32) if seed is None else function(seed)
""",
}


def child(seed: str | None, path: str | None = None) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    env |= {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "ERROR"}
    if seed is not None:
        env["PYTHONHASHSEED"] = seed
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join([path, *filter(None, [env.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], env=env, text=True, stdout=subprocess.PIPE
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return dict(json.loads(out.splitlines()[-1]))


def test_equal_keys_of_other_processes_have_equal_records() -> None:
    tags = {"lmcache.tag.user": "u", "lmcache.tag.n": 2}
    made: list[object] = [
        CacheEngineKey("m", 8, 3, -7, torch.bfloat16, tags),
        LayerCacheEngineKey("m", 8, 3, 2**77, torch.half, {"other": 1}, layer_id=5),
        ObjectKey(b"digest", "m", 3, 1, "salt"),
    ]
    answers = [answer(process) for process in [child("1"), child("2")]]
    for theirs in answers:
        assert theirs["records"] == [record.hex() for record in encode_keys(made)]
        assert theirs["fingerprints"] == fingerprints(made)
    first, second = answers
    assert (first["scheme"] == second["scheme"]) == (first["hashes"] == second["hashes"])


def test_schemes_differ_exactly_when_chunk_hashes_do(tmp_path: Any) -> None:
    """With vLLM and no PYTHONHASHSEED each process hashes for itself: the case to be caught."""
    for name, text in FAKE_VLLM.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    seeds = [None, None, "0", "0"]
    answers = [answer(process) for process in [child(seed, str(tmp_path)) for seed in seeds]]
    for one in answers:
        assert one["again"] == one["scheme"]
        for other in answers:
            assert (one["scheme"] == other["scheme"]) == (one["hashes"] == other["hashes"])
    unset, also_unset, zero, also_zero = (one["scheme"] for one in answers)
    assert unset != also_unset
    assert unset != zero
    assert zero == also_zero


def config(**settings: Any) -> LMCacheEngineConfig:
    return LMCacheEngineConfig.from_defaults(**settings)


def test_scheme_names_what_hashes_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    scheme = keys.hash_scheme(config(chunk_size=256))
    prefix, probe = scheme.rsplit("/", 1)
    assert prefix == "lmcache/chunk=256/builtin"
    assert len(probe) == 16
    assert keys.hash_scheme(config(chunk_size=256)) == scheme
    assert keys.hash_scheme(config(chunk_size=128)) != scheme
    # Neither decides how a chunk is hashed.
    assert keys.hash_scheme(config(chunk_size=256, save_unfull_chunk=True)) == scheme
    assert keys.hash_scheme(config(chunk_size=256, save_decode_cache=True)) == scheme
    # Without vLLM LMCache falls back to the built-in hash: the name is of the one in use.
    asked = config(chunk_size=256, pre_caching_hash_algorithm="sha256_cbor")
    assert keys.hash_scheme(asked) == scheme


def test_scheme_with_blending_depends_on_the_separator_instead() -> None:
    def blended(size: int, separator: str) -> str:
        chosen = config(chunk_size=size)
        chosen.enable_blending = True
        chosen.blend_special_str = separator
        return keys.hash_scheme(chosen)

    assert blended(256, " # # ").startswith("lmcache/segments=")
    assert blended(256, " # # ") == blended(128, " # # ")
    assert blended(256, " # # ") != blended(256, " ## ")


def test_scheme_leaves_the_seed_of_a_running_engine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a token database draws a new seed, with which the engine would lose its keys."""
    modules = {name: types.ModuleType(name) for name in ("vllm", "vllm.v1", "vllm.v1.core")}
    cache = types.ModuleType("vllm.v1.core.kv_cache_utils")
    modules["vllm.v1.core"].kv_cache_utils = cache  # type: ignore[attr-defined]

    def init_none_hash(_: object) -> None:
        cache.NONE_HASH = os.urandom(32)  # type: ignore[attr-defined]

    cache.init_none_hash = init_none_hash  # type: ignore[attr-defined]
    for name, module in {**modules, "vllm.v1.core.kv_cache_utils": cache}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(token_database, "NONE_HASH", 0)

    token_database.ChunkedTokenDatabase(config(chunk_size=16))
    seeds = (cache.NONE_HASH, token_database.NONE_HASH)
    first = keys.hash_scheme(config(chunk_size=16))
    assert seeds == (cache.NONE_HASH, token_database.NONE_HASH)
    assert keys.hash_scheme(config(chunk_size=16)) == first
    token_database.ChunkedTokenDatabase(config(chunk_size=16))  # as another process would start
    assert keys.hash_scheme(config(chunk_size=16)) != first


ZERO, ONE = "0" * 16, "1" * 16


@pytest.mark.parametrize(
    ("mine", "pools", "seed", "advice"),
    [
        (f"lmcache/chunk=256/builtin/{ZERO}", f"lmcache/chunk=128/builtin/{ONE}", "0",
         "chunk_size is 256 here and 128 in the pool: set chunk_size: 128"),
        (f"lmcache/chunk=256/builtin/{ZERO}", f"lmcache/chunk=256/builtin/{ONE}", None,
         "PYTHONHASHSEED is not set, so the builtin hashes of a prompt differ from process to "
         "process: set PYTHONHASHSEED=0 in the environment of every process"),
        (f"lmcache/chunk=256/sha256/{ZERO}", f"lmcache/chunk=256/sha256/{ONE}", "random",
         "PYTHONHASHSEED is not set"),
        (f"lmcache/chunk=256/builtin/{ZERO}", f"lmcache/chunk=256/builtin/{ONE}", "7",
         "PYTHONHASHSEED is 7 here"),
        (f"lmcache/chunk=256/builtin/{ZERO}", f"lmcache/chunk=256/sha256_cbor/{ONE}", "0",
         "set pre_caching_hash_algorithm: sha256_cbor"),
        (f"lmcache/chunk=256/builtin/{ZERO}", f"lmcache/segments=01234567/builtin/{ONE}", "0",
         "Set enable_blending: true"),
        (f"lmcache/segments=76543210/builtin/{ZERO}", f"lmcache/segments=01234567/builtin/{ZERO}",
         "0", "blend_special_str is not the one"),
        (f"lmcache/chunk=256/builtin/{ZERO}", "my own scheme", "0",
         "The pool's chunks are keyed by 'my own scheme'"),
    ],
)  # fmt: skip
def test_advice_names_the_fix(
    mine: str, pools: str, seed: str | None, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed is None:
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    else:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    given_advice = keys.hash_scheme_advice(mine, pools)
    assert advice in given_advice
    assert "another pool" in given_advice


def test_no_advice_where_none_is_needed() -> None:
    scheme = f"lmcache/chunk=256/builtin/{ZERO}"
    assert keys.hash_scheme_advice(scheme, scheme) == ""
