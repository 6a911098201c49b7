"""LMCache's server loads in lanes what it loads in one stream. Skipped without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

BLOCK, CHUNK, LAYERS, HEADS, HEAD_DIM = 16, 256, 8, 8, 128
CHUNKS = 23
BLOCKS = CHUNKS * CHUNK // BLOCK
SHAPE = (2, LAYERS, CHUNK, HEADS * HEAD_DIM)


def cache() -> Any:
    from lmcache.v1.platform.devices.cuda.cache_context import GPUCacheContext

    layers = [
        torch.zeros(2, BLOCKS, BLOCK, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda:0")
        for _ in range(LAYERS)
    ]
    wrapped = [
        SimpleNamespace(to_tensor=lambda layer=layer: layer, close=lambda: None) for layer in layers
    ]
    return GPUCacheContext(wrapped, CHUNK, layout_hints={"kv_layout": "NHD"})


def chunks() -> list[Any]:
    from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

    generator = torch.Generator().manual_seed(1)
    objs = []
    for _ in range(CHUNKS):
        bits = torch.randint(-(1 << 15), 1 << 15, SHAPE, dtype=torch.int16, generator=generator)
        raw = bits.flatten().view(torch.uint8).pin_memory()
        shape = torch.Size(SHAPE)
        metadata = MemoryObjMetadata(
            shape,
            torch.bfloat16,
            0,
            raw.nbytes,
            1,
            0,
            MemoryFormat.KV_2LTD,
            [shape],
            [torch.bfloat16],
        )
        objs.append(TensorMemoryObj(raw, metadata, None))
    return objs


@pytest.mark.parametrize("skipped", [0, BLOCK, CHUNK, 3 * CHUNK + BLOCK])
def test_every_chunk_arrives(skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmcache.v1.multiprocess import object_group_transfer

    from lmcache_beluga.engines.l1_lanes import load_in_lanes

    name = "_run_object_group_transfer_plan"
    stock = getattr(object_group_transfer, name)
    monkeypatch.setattr(object_group_transfer, name, stock)
    load_in_lanes()
    in_lanes = getattr(object_group_transfer, name)
    assert in_lanes is not stock
    to_gpu = object_group_transfer.lmcache_native.TransferDirection.H2D
    ids = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(2)).to("cuda:0")
    found = []
    for plan in (stock, in_lanes, in_lanes):
        context = cache()
        with torch.cuda.stream(context.stream):
            plan(context, [ids], chunks(), 0, 4, skipped, to_gpu, transfer_key="request")
        context.stream.synchronize()
        found.append([layer.view(torch.int16).cpu() for layer in context.kv_caches_])
    assert found[0][0].any()
    for other in found[1:]:
        for layer, expected in zip(other, found[0], strict=True):
            assert torch.equal(layer, expected)
