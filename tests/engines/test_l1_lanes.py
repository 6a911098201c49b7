"""Loads in lanes put every chunk where LMCache's one stream puts it.

LMCache's own code copies and spreads, on the CPU; CUDA's streams only take notes here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.multiprocess import object_group_transfer
from lmcache.v1.platform.devices.cpu.cache_context import CPUCacheContext

from lmcache_beluga.engines import l1_lanes
from lmcache_beluga.engines.l1_lanes import FEWEST_CHUNKS, load_in_lanes

BLOCK, CHUNK, LAYERS, HEADS, HEAD_DIM = 16, 64, 3, 2, 32
BLOCKS = 64
SHAPE = torch.Size([2, LAYERS, CHUNK, HEADS * HEAD_DIM])
TO_GPU = object_group_transfer.lmcache_native.TransferDirection.H2D
FROM_GPU = object_group_transfer.lmcache_native.TransferDirection.D2H


class Cache:
    """LMCache's of CPU memory."""

    def __init__(self) -> None:
        layers = [torch.zeros(2, BLOCKS, BLOCK, HEADS, HEAD_DIM) for _ in range(LAYERS)]
        wrapped = [SimpleNamespace(to_tensor=lambda layer=layer: layer) for layer in layers]
        self._context = CPUCacheContext(wrapped, CHUNK, layout_hints={"kv_layout": "NHD"})
        self.kv = layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Streams:
    """torch.cuda's streams, which are only names here, and what was done with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        #: Of each part of a load: the addresses of its staging memory.
        self.staging: list[list[int]] = []
        self.made = 0
        self.engine = self._stream("engine")
        monkeypatch.setattr(torch.cuda, "Stream", self._make)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.engine)
        monkeypatch.setattr(torch.cuda, "stream", self._enter)

    def _make(self, device: Any) -> Any:
        self.made += 1
        return self._stream(f"lane {self.made - 1}")

    def _stream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}")
        )

    @contextlib.contextmanager
    def _enter(self, stream: Any) -> Iterator[None]:
        self.log.append(f"in {stream.name}")
        yield


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Lanes are installed over a plan that LMCache carries out on the CPU."""

    def plan(cache: Any, *args: Any, **kwargs: Any) -> None:
        slots = range(cache.max_batch_size)
        found.staging.append([cache.get_temp_object_group_buffer(n, 0).data_ptr() for n in slots])
        object_group_transfer.transfer_kv_per_object_group(cache, *args, **kwargs)

    found = Streams(monkeypatch)
    stock = object_group_transfer._run_object_group_transfer_plan
    plan.__signature__ = inspect.signature(stock)  # type: ignore[attr-defined]
    # The build for CPUs has no native plan, and does the same piece by piece.
    assert not object_group_transfer._HAS_NATIVE_OBJECT_GROUP_TRANSFER
    monkeypatch.setattr(object_group_transfer, "_run_object_group_transfer_plan", plan)
    load_in_lanes()
    monkeypatch.setattr(l1_lanes, "_has_streams", lambda cache_context: True)
    return found


def chunks(count: int) -> list[TensorMemoryObj]:
    generator = torch.Generator().manual_seed(count)
    objs = []
    for _ in range(count):
        raw = torch.rand(SHAPE, generator=generator).flatten().view(torch.uint8)
        metadata = MemoryObjMetadata(
            SHAPE,
            torch.float32,
            0,
            raw.nbytes,
            1,
            0,
            MemoryFormat.KV_2LTD,
            [SHAPE],
            [torch.float32],
        )
        objs.append(TensorMemoryObj(raw, metadata, None))
    return objs


def move(
    cache: Cache, objs: Any, skipped: int = 0, direction: Any = TO_GPU, plan: Any = None
) -> None:
    """Block ids run backwards, so that chunks are not where they would be by chance."""
    ids = torch.arange(BLOCKS - 1, BLOCKS - 1 - len(objs) * CHUNK // BLOCK, -1)
    plan = plan or object_group_transfer._run_object_group_transfer_plan
    plan(cache, [ids], objs, 0, cache.max_batch_size, skipped, direction, transfer_key="request")


def in_one_stream(objs: Any, skipped: int) -> list[torch.Tensor]:
    cache = Cache()
    in_lanes = object_group_transfer._run_object_group_transfer_plan
    move(cache, objs, skipped, plan=in_lanes.__wrapped__)
    return cache.kv


@pytest.mark.parametrize("count", [FEWEST_CHUNKS, 11, 16])
@pytest.mark.parametrize("skipped", [0, BLOCK, CHUNK, 2 * CHUNK + BLOCK])
def test_every_chunk_arrives(streams: Streams, count: int, skipped: int) -> None:
    cache, objs = Cache(), chunks(count)
    move(cache, objs, skipped)
    expected = in_one_stream(objs, skipped)
    assert expected[0].any()
    for layer, other in zip(cache.kv, expected, strict=True):
        assert torch.equal(layer, other)


def test_lanes_share_no_staging_memory_and_are_waited_for(streams: Streams) -> None:
    move(Cache(), chunks(8))
    assert [len(lane) for lane in streams.staging] == 4 * [4]
    assert len({address for lane in streams.staging for address in lane}) == 16
    lanes = [f"lane {number}" for number in range(4)]
    assert streams.log == [
        *(line for lane in lanes for line in (f"{lane} waits for engine", f"in {lane}")),
        *(f"engine waits for {lane}" for lane in lanes),
    ]


@pytest.mark.parametrize(("limit", "slots"), [(9, 2), (7, 1), (1, 1), (1000, 4)])
def test_staging_memory_has_a_limit(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, limit: int, slots: int
) -> None:
    monkeypatch.setattr(l1_lanes, "STAGING_BYTES", limit * SHAPE.numel() * 4)
    move(Cache(), chunks(8))
    assert [len(lane) for lane in streams.staging] == 4 * [slots]


def test_a_full_gpu_loads_through_lmcaches_own_staging_memory(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, objs = Cache(), chunks(8)
    expected = in_one_stream(objs, 0)
    empty = torch.empty

    def full(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("dtype") is torch.uint8:
            raise torch.OutOfMemoryError
        found: torch.Tensor = empty(*args, **kwargs)
        return found

    streams.staging.clear()
    monkeypatch.setattr(torch, "empty", full)
    move(cache, objs)
    assert [len(lane) for lane in streams.staging] == 4 * [1]
    for layer, other in zip(cache.kv, expected, strict=True):
        assert torch.equal(layer, other)


def test_a_cache_that_is_gone_takes_its_staging_memory_along(streams: Streams) -> None:
    cache = Cache()
    move(cache, chunks(8))
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


def test_a_cache_keeps_its_streams(streams: Streams) -> None:
    one, other = Cache(), Cache()
    for _ in range(3):
        move(one, chunks(8))
    assert streams.made == l1_lanes.LANES
    move(other, chunks(8))
    assert streams.made == 2 * l1_lanes.LANES


def test_what_was_launched_is_waited_for_after_an_error(streams: Streams) -> None:
    cache, objs = Cache(), chunks(8)
    with pytest.raises(ValueError, match="None"):
        move(cache, [*objs[:6], None, None])
    assert streams.log[-4:] == [f"engine waits for lane {number}" for number in range(4)]


def test_stores_and_short_loads_stay_in_the_engines_stream(streams: Streams) -> None:
    cache = Cache()
    move(cache, chunks(FEWEST_CHUNKS - 1))
    move(cache, chunks(FEWEST_CHUNKS + 1), skipped=2 * CHUNK)
    move(cache, chunks(8), direction=FROM_GPU)
    assert not streams.log


def test_a_sliding_window_stays_in_the_engines_stream(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMCache loads only the last chunks of it, by how many there are."""
    cache = Cache()
    manager = cache.kv_layer_groups_manager
    description = dataclasses.replace(manager.get_attn_desc(), num_chunks_in_sw=[3])
    monkeypatch.setattr(manager, "get_attn_desc", lambda: description)
    move(cache, chunks(8))
    assert not streams.log


def test_a_plan_that_has_changed_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(request: Any) -> None:
        pass

    monkeypatch.setattr(object_group_transfer, "_run_object_group_transfer_plan", plan)
    load_in_lanes()
    assert object_group_transfer._run_object_group_transfer_plan is plan
    assert "one stream" in caplog.text


def test_it_fits_the_lmcache_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = object_group_transfer._run_object_group_transfer_plan
    monkeypatch.setattr(object_group_transfer, "_run_object_group_transfer_plan", stock)
    load_in_lanes()
    installed = object_group_transfer._run_object_group_transfer_plan
    assert installed is not stock
    load_in_lanes()
    assert object_group_transfer._run_object_group_transfer_plan is installed
    names = object_group_transfer.transfer_kv_per_object_group.__code__.co_names
    assert "_run_object_group_transfer_plan" in names
