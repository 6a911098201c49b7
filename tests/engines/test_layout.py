from __future__ import annotations

import math

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from lmcache_beluga.engines.layout import Layout, LayoutCodec

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.float8_e4m3fn]
FORMATS = [fmt for fmt in MemoryFormat if fmt is not MemoryFormat.UNDEFINED]

groups = st.lists(
    st.tuples(
        st.lists(st.integers(0, 1 << 20), min_size=3, max_size=5).map(torch.Size),
        st.sampled_from(DTYPES),
    ),
    min_size=1,
    max_size=5,
)


@given(groups, st.sampled_from(FORMATS))
def test_round_trip(groups: list[tuple[torch.Size, torch.dtype]], fmt: MemoryFormat) -> None:
    shapes, dtypes = (list(column) for column in zip(*groups, strict=True))
    layout = Layout.of(shapes, dtypes, fmt)
    assert layout.nbytes == sum(math.prod(s) * d.itemsize for s, d in groups)
    again = LayoutCodec().unpack(layout.packed(), layout.nbytes)
    assert (again.shapes, again.dtypes, again.fmt) == (shapes, dtypes, fmt)
    assert again.bounds == layout.bounds
    with pytest.raises(ValueError, match="bytes"):
        LayoutCodec().unpack(layout.packed(), layout.nbytes + 1)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=300))
def test_positions_round_trip(positions: list[int]) -> None:
    layout = Layout.of(
        torch.Size([2, 8, 4]), torch.float16, MemoryFormat.KV_2TD, torch.tensor(positions)
    )
    again = LayoutCodec().unpack(layout.packed(), layout.nbytes)
    assert again.positions is not None and again.positions.tolist() == positions


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"not the metadata|bytes"):
        LayoutCodec().unpack(packed, 1 << 40)


leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats()
nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=20)


@given(st.tuples(st.sampled_from(["KV_2LTD", "KV_T2D", "x"]), nested, nested))
def test_any_values_are_refused_or_read(values: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"not the metadata|bytes"):
        LayoutCodec().unpack(msgpack.packb(values), 1 << 40)


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [["bfloat16", -1, 2]],
        [["bfloat16", 1 << 60]],
        [["bfloat16", True]],
        [["bfloat16", *[1] * 9]],
        [["Tensor", 2]],
        [["__class__", 2]],
        [["float16", 1]] * 65,
    ],
)
def test_groups_that_no_chunk_has(groups: list[object]) -> None:
    with pytest.raises(ValueError, match="not the metadata"):
        LayoutCodec().unpack(msgpack.packb(["KV_2LTD", groups, None]), 2)


def test_tokens_are_counted_whatever_the_format() -> None:
    for fmt, shape in (
        (MemoryFormat.KV_2LTD, (2, 3, 17, 4)),
        (MemoryFormat.KV_MLA_FMT, (1, 3, 17, 4)),
        (MemoryFormat.KV_T2D, (17, 2, 4)),
        (MemoryFormat.KV_2TD, (2, 17, 4)),
    ):
        assert Layout.of(torch.Size(shape), torch.float16, fmt).num_tokens == 17


def test_metadata_is_small() -> None:
    """It shares a few cache lines with the key."""
    shape = torch.Size([2, 80, 256, 1024])
    assert len(Layout.of(shape, torch.bfloat16, MemoryFormat.KV_2LTD).packed()) < 40


def test_object_that_changed_its_format_after_allocation() -> None:
    """LMCache's connectors set the format of MLA objects once they have filled them."""
    shape = torch.Size([1, 2, 8, 4])
    meta = MemoryObjMetadata(shape, torch.float16, 0, 128, 1, fmt=MemoryFormat.KV_2LTD)
    obj = TensorMemoryObj(torch.zeros(128, dtype=torch.uint8), meta, None)
    codec = LayoutCodec()
    assert codec.unpack(codec.pack(obj), 128).fmt is MemoryFormat.KV_2LTD
    meta.fmt = MemoryFormat.KV_MLA_FMT
    assert codec.unpack(codec.pack(obj), 128).fmt is MemoryFormat.KV_MLA_FMT


def test_cache_of_layouts_is_bounded() -> None:
    codec = LayoutCodec()
    for tokens in range(1, 5000):
        layout = Layout.of(torch.Size([tokens]), torch.uint8, MemoryFormat.KV_2LTD)
        codec.unpack(layout.packed(), tokens)
    assert len(codec._layouts) <= 4096
