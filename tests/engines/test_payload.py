"""Objects that are not one piece of CPU memory are stored as the bytes they mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from engine_harness import CHUNK, Engine, prompt
from lmcache.v1.memory_management import (
    BytesBufferMemoryObj,
    MemoryFormat,
    MemoryObjMetadata,
    TensorMemoryObj,
)

Start = Callable[..., Engine]


def keys_of(engine: Engine, tokens: list[int]) -> list[object]:
    return [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]


def of_tensor(raw: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> TensorMemoryObj:
    nbytes = shape.numel() * dtype.itemsize
    metadata = MemoryObjMetadata(shape, dtype, 0, nbytes, 1, fmt=MemoryFormat.KV_2LTD)
    return TensorMemoryObj(raw, metadata, parent_allocator=None)


def test_tensors_that_are_not_contiguous(start: Start) -> None:
    engine = start()
    keys = keys_of(engine, prompt(3 * CHUNK, seed=1))
    shape = torch.Size([2, 2, CHUNK, 64])
    noise = torch.randn(shape).bfloat16()
    flat = noise.reshape(-1).view(torch.uint8)
    wide = torch.zeros((len(flat), 3), dtype=torch.uint8)
    wide[:, 1] = flat
    reordered = noise.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    objs = [
        of_tensor(flat, shape, torch.bfloat16),
        of_tensor(wide[:, 1], shape, torch.bfloat16),
        of_tensor(reordered, shape, torch.bfloat16),
    ]
    assert not objs[1].raw_tensor.is_contiguous() and not reordered.is_contiguous()
    engine.backend.batched_submit_put_task(keys, objs)
    for obj in engine.backend.batched_get_blocking(keys):
        assert torch.equal(obj.tensor, noise)
        obj.ref_count_down()
    engine.assert_clean()


def test_compressed_bytes(start: Start) -> None:
    engine = start()
    (key,) = keys_of(engine, prompt(CHUNK, seed=1))
    engine.backend.batched_submit_put_task([key], [BytesBufferMemoryObj(b"compressed" * 99)])
    found = engine.backend.get_blocking(key)
    assert isinstance(found, BytesBufferMemoryObj)
    assert bytes(found.byte_array) == b"compressed" * 99
    engine.assert_clean()


def test_buffer_of_which_less_is_used(start: Start) -> None:
    engine = start()
    (key,) = keys_of(engine, prompt(CHUNK, seed=1))
    obj = of_tensor(torch.arange(200, dtype=torch.uint8), torch.Size([100]), torch.float16)
    obj.set_used_size(77)
    engine.backend.batched_submit_put_task([key], [obj])
    (found,) = engine.backend.batched_get_blocking([key])
    assert found.tensor.tolist() == list(range(77))
    found.ref_count_down()


def test_positions_of_blended_chunks(start: Start) -> None:
    engine = start()
    (key,) = keys_of(engine, prompt(CHUNK, seed=1))
    shape = torch.Size([2, CHUNK, 64])
    obj = of_tensor(torch.zeros(2 * CHUNK * 64, dtype=torch.uint8), shape, torch.uint8)
    obj.meta.fmt = MemoryFormat.KV_2TD
    obj.meta.cached_positions = torch.arange(128, 128 + CHUNK)
    engine.backend.batched_submit_put_task([key], [obj])
    (found,) = engine.backend.batched_get_blocking([key])
    assert found.metadata.fmt is MemoryFormat.KV_2TD
    assert torch.equal(found.metadata.cached_positions, torch.arange(128, 128 + CHUNK))
    found.ref_count_down()


def test_released_object_is_not_stored(start: Start, caplog: object) -> None:
    engine = start(plugin="LocalCPUBackend", max_local_cpu_size=0)
    (key,) = keys_of(engine, prompt(CHUNK, seed=1))
    obj = engine.storage.allocate(engine.metadata.get_shapes(), engine.metadata.get_dtypes())
    obj.ref_count_down()
    engine.backend.batched_submit_put_task([key], [obj])
    assert engine.stats["chunks"] == 0
    assert "released" in caplog.text
    engine.assert_clean()
