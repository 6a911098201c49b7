"""The fused copy on a real GPU, every byte compared. Skipped without one."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paged_reference import chunk, random_cache

from lmcache_beluga.errors import InvalidArgumentError, UnsupportedError
from lmcache_beluga.gpu.copy_engines import CopyEngines
from lmcache_beluga.gpu.copy_method import Direction, Method
from lmcache_beluga.gpu.cuda_runtime import CudaError, CudaRuntime
from lmcache_beluga.gpu.fused_copy import FusedCopy
from lmcache_beluga.gpu.paged_cache import PagedCache, Paging
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool, PutResult

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

MIB = 1 << 20
GPU = "cuda:0"
BLOCKS = [7, 3, 22, 0, 11, 5, 19, 2, 13, 1]
TO_GPU, TO_POOL = Direction.TO_GPU, Direction.TO_POOL


class Rig:
    """A pool of 512 MiB, registered."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.registration = Registration(pool, CudaRuntime(0))
        self.copy = FusedCopy(self.registration, 0)

    def slot(self, nbytes: int) -> Any:
        slot = self.pool.reserve(nbytes)
        assert self.registration.covers(slot)
        return slot


@pytest.fixture
def rig(pool_path: Path) -> Iterator[Rig]:
    Pool.format(pool_path, size=512 * MIB, extent_size=64 * MIB, chunk_hint=8 * MIB)
    with Pool.attach(pool_path) as pool:
        rig = Rig(pool)
        yield rig
        rig.copy.close()
        rig.registration.close()
    works()


def works() -> None:
    """Nothing that went wrong is left behind for the next kernel."""
    torch.cuda.synchronize()
    assert float(torch.ones(8, device=GPU).sum()) == 8


def random_bytes(nbytes: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator(GPU).manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=GPU, generator=generator)


def filled(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


# ---- fragments


@pytest.mark.parametrize("way", Method)
@pytest.mark.parametrize("nbytes", [1, 15, 160, 1000, 4096, 20_480, 65_552])
def test_fragments_of_any_size_and_alignment(rig: Rig, nbytes: int, way: Method) -> None:
    count = 53
    for pool_shift, gpu_shift in [(0, 0), (1, 0), (8, 24), (4, 2), (16, 3)]:
        gap = nbytes + 64
        slot = rig.slot(count * gap + 64)
        memory = random_bytes(count * gap + 64, nbytes)
        reference = memory.cpu()
        slot.array[:] = 0
        order = random.Random(nbytes).sample(range(count), count)
        in_gpu = [memory.data_ptr() + gpu_shift + i * gap for i in range(count)]
        in_pool = [slot.address + pool_shift + i * gap for i in order]
        rig.copy.copy(in_pool, in_gpu, nbytes, TO_POOL, method=way).wait()
        expected = torch.zeros_like(reference)
        for i, j in enumerate(order):
            begin = gpu_shift + i * gap
            expected[pool_shift + j * gap :][:nbytes] = reference[begin : begin + nbytes]
        assert torch.equal(filled(slot.array), expected)
        memory.zero_()
        rig.copy.copy(in_gpu, in_pool, nbytes, TO_GPU, method=way).wait()
        expected = torch.zeros_like(reference)
        for i in range(count):
            begin = gpu_shift + i * gap
            expected[begin : begin + nbytes] = reference[begin : begin + nbytes]
        assert torch.equal(memory.cpu(), expected)
        slot.abort()


@pytest.mark.parametrize("thread_blocks", [None, 1, 16, 132, 1000])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_ten_thousand_fragments(rig: Rig, thread_blocks: int | None, on_gpu: bool) -> None:
    for count, nbytes in [(10_000, 160), (10_000, 4096), (257, 65_536)]:
        slot = rig.slot(count * nbytes)
        memory = random_bytes(count * nbytes, count)
        before = memory.clone()
        numbers = np.random.default_rng(count)
        order, back = numbers.permutation(count), numbers.permutation(count)
        in_pool = slot.address + np.arange(count) * nbytes
        from_gpu = memory.data_ptr() + order * nbytes
        to_gpu = memory.data_ptr() + back * nbytes
        options = {"method": Method.FUSED, "thread_blocks": thread_blocks}

        def side(addresses: np.ndarray) -> Any:
            return torch.from_numpy(addresses).to(GPU) if on_gpu else addresses

        rig.copy.copy(side(in_pool), side(from_gpu), nbytes, TO_POOL, **options).wait()
        rows = before.view(count, nbytes)
        expected = rows[torch.from_numpy(order).to(GPU)]
        assert torch.equal(filled(slot.array), expected.cpu().reshape(-1))
        memory.zero_()
        rig.copy.copy(side(to_gpu), side(in_pool), nbytes, TO_GPU, **options).wait()
        assert torch.equal(memory.view(count, nbytes)[torch.from_numpy(back).to(GPU)], expected)
        slot.abort()


def test_addresses_on_the_gpu_may_be_misaligned(rig: Rig) -> None:
    slot, memory = rig.slot(4096), random_bytes(4096)
    slot.array[:] = 0
    begins = torch.tensor([memory.data_ptr() + at for at in (0, 256, 517)], device=GPU)
    ends = torch.tensor([slot.address + at for at in (0, 261, 520)], device=GPU)
    rig.copy.copy(ends, begins, 250, TO_POOL).wait()
    there, source = filled(slot.array), memory.cpu()
    assert torch.equal(there[:250], source[:250])
    assert torch.equal(there[261:511], source[256:506])
    assert torch.equal(there[520:770], source[517:767])
    assert not there[250:261].any() and not there[770:].any()


# ---- paged KV


@pytest.mark.parametrize(
    ("heads", "width", "dtype"),
    [
        (8, 128, torch.bfloat16),
        (1, 576, torch.bfloat16),
        (1, 656, torch.uint8),
        (3, 4, torch.bfloat16),
        (1, 3, torch.float32),
        (1, 5, torch.float16),
        (3, 7, torch.uint8),
    ],
)
@pytest.mark.parametrize("paging", Paging)
def test_chunks_are_laid_out_as_lmcache_does(
    rig: Rig, paging: Paging, heads: int, width: int, dtype: torch.dtype
) -> None:
    layers = random_cache(paging, heads=heads, width=width, dtype=dtype, device=GPU)
    cache = PagedCache.of(layers)
    tokens = [64, 64, 23, 1]
    starts = [sum(tokens[:i]) for i in range(len(tokens))]
    slots = [rig.slot(cache.chunk_bytes(count)) for count in tokens]
    keys = [b"%d" % i for i in range(len(tokens))]
    assert rig.copy.store(slots, cache, BLOCKS).commit(keys) == [PutResult.STORED] * 4
    on_cpu = [layer.cpu() for layer in layers]
    views = rig.pool.get_batch(keys)
    expected = [
        chunk(on_cpu, paging, BLOCKS, start, count)
        for start, count in zip(starts, tokens, strict=True)
    ]
    for view, wanted in zip(views, expected, strict=True):
        assert torch.equal(filled(view.array), wanted)
    for layer in layers:
        layer.view(torch.uint8).fill_(0xA5)
    ids = torch.tensor(BLOCKS, dtype=torch.int32, device=GPU)
    assert rig.copy.load(views, cache, ids).lost() == []
    on_cpu = [layer.cpu() for layer in layers]
    for start, count, wanted in zip(starts, tokens, expected, strict=True):
        assert torch.equal(chunk(on_cpu, paging, BLOCKS, start, count), wanted)
    others = torch.tensor(sorted(set(range(cache.blocks)) - set(BLOCKS)))
    for layer in on_cpu:
        rest = layer.index_select(1 if paging is Paging.HALVES_FIRST else 0, others)
        assert (rest.contiguous().view(torch.uint8) == 0xA5).all(), "other blocks are left alone"
    for view in views:
        view.release()


def test_a_prompt_of_a_large_model(rig: Rig) -> None:
    """Llama-8B, 2,048 tokens in chunks of 256, 256 MiB; from and to different blocks."""
    shape = (2, 192, 16, 8, 128)
    layers = [random_bytes(2 * np.prod(shape).item(), i).view(torch.bfloat16) for i in range(32)]
    layers = [layer.view(shape) for layer in layers]
    cache = PagedCache.of(layers)
    order = random.Random(1).sample(range(192), 128)
    slots = [rig.slot(cache.chunk_bytes(256)) for _ in range(8)]
    keys = [b"%d" % i for i in range(8)]
    rig.copy.store(slots, cache, order).commit(keys)
    index = torch.tensor(order, device=GPU)
    wanted = [layer[:, index].clone() for layer in layers]
    for layer in layers:
        layer.zero_()
    other = random.Random(2).sample(range(192), 128)
    views = rig.pool.get_batch(keys)
    assert rig.copy.load(views, cache, other).lost() == []
    index = torch.tensor(other, device=GPU)
    for layer, before in zip(layers, wanted, strict=True):
        assert torch.equal(layer[:, index].view(torch.int16), before.view(torch.int16))
    for view in views:
        view.release()


# ---- order


@pytest.mark.parametrize("kind", ["null", "torch", "cupy", "raw", "current"])
@pytest.mark.parametrize("way", Method)
def test_a_copy_waits_for_its_stream(rig: Rig, way: Method, kind: str) -> None:
    """What was started before on the same stream is finished; nobody else waits."""
    cupy = pytest.importorskip("cupy")
    nbytes, count = 65_536, 64
    slot, memory = rig.slot(nbytes * count), random_bytes(nbytes * count)
    slot.array[:] = 0
    torch.cuda.synchronize()
    mine = torch.cuda.default_stream() if kind == "null" else torch.cuda.Stream()
    stream = {
        "null": 0,
        "torch": mine,
        "cupy": cupy.cuda.ExternalStream(mine.cuda_stream),
        "raw": mine.cuda_stream,
        "current": None,
    }[kind]
    places = np.arange(count) * nbytes
    in_pool, in_gpu = slot.address + places, memory.data_ptr() + places
    rig.copy.copy(in_pool, in_gpu, nbytes, TO_POOL, method=way).wait()  # compiles the kernel
    with torch.cuda.stream(mine):
        torch.cuda._sleep(1_000_000_000)  # about half a second, if the host is held up meanwhile
        memory.add_(1)
        transfer = rig.copy.copy(in_pool, in_gpu, nbytes, TO_POOL, method=way, stream=stream)
        assert not transfer.done
        memory.zero_()  # and what comes after it waits for the copy
    transfer.wait()
    assert torch.equal(filled(slot.array), random_bytes(nbytes * count).add_(1).cpu())
    torch.cuda.synchronize()


def test_a_lost_lease_is_told(rig: Rig) -> None:
    layers = random_cache(Paging.HALVES_FIRST, device=GPU)
    cache = PagedCache.of(layers)
    slots = [rig.slot(cache.chunk_bytes(32)) for _ in range(3)]
    keys = [b"0", b"1", b"2"]
    rig.copy.store(slots, cache, BLOCKS).commit(keys)
    views = rig.pool.get_batch(keys)
    load = rig.copy.load(views, cache, BLOCKS)
    views[1].release()
    assert load.lost() == [1]
    for view in views:
        view.release()


# ---- what goes wrong leaves nothing behind


@pytest.mark.parametrize("wrong", [23, -1, 1 << 20])
def test_block_ids_on_the_gpu_are_checked_there(rig: Rig, wrong: int) -> None:
    layers = random_cache(Paging.BLOCKS_FIRST, device=GPU)
    cache = PagedCache.of(layers)
    slot = rig.slot(cache.chunk_bytes(32))
    for dtype in (torch.int32, torch.int64):
        store = rig.copy.store([slot], cache, torch.tensor([3, wrong], dtype=dtype, device=GPU))
        with pytest.raises(InvalidArgumentError, match="range"):
            store.commit([b"k"])
    with pytest.raises(InvalidArgumentError):
        rig.copy.store([slot], cache, [3, wrong])
    with pytest.raises(InvalidArgumentError):
        rig.copy.store([slot], cache, torch.tensor([3.0, 4.0], device=GPU))
    assert rig.pool.get(b"k") is None
    works()


def test_a_launch_that_is_refused(rig: Rig) -> None:
    device = rig.copy._device
    with pytest.raises(CudaError):
        device.launch("copy_fragments", 16, 1 << 31, [np.uint64(0)] * 6, device.stream(None))
    works()


def test_copies_that_are_refused(rig: Rig) -> None:
    slot, memory = rig.slot(4096), random_bytes(4096)
    to = np.array([slot.address], dtype=np.uint64)
    source = np.array([memory.data_ptr()], dtype=np.uint64)
    runtime = CudaRuntime(0)
    with pytest.raises(CudaError):  # the null stream
        CopyEngines(runtime).copy_batch(to, source, 16, 0)
    works()
    sides = ctypes.c_void_p(slot.address), ctypes.c_void_p(memory.data_ptr())
    with pytest.raises(CudaError, match="cudaMemcpyAsync"):  # there is no such direction
        size, kind, stream = ctypes.c_size_t(16), ctypes.c_int(99), ctypes.c_void_p(0)
        runtime.call("cudaMemcpyAsync", *sides, size, kind, stream)
    works()


def test_a_refused_registration(rig: Rig) -> None:
    cache = PagedCache.of(random_cache(Paging.LATENT, device=GPU))
    slot = rig.slot(cache.chunk_bytes(16))
    again = Registration(rig.pool, CudaRuntime(0))  # CUDA has this memory already
    with pytest.raises(UnsupportedError, match="cannot reach"):
        FusedCopy(again, 0).store([slot], cache, BLOCKS)
    again.close()
    works()
    rig.copy.store([slot], cache, BLOCKS).wait()


def test_caches_and_devices_that_do_not_fit(rig: Rig) -> None:
    cache = PagedCache.of(random_cache(Paging.LATENT))
    slot = rig.slot(cache.chunk_bytes(16))
    with pytest.raises(InvalidArgumentError, match="cpu"):
        rig.copy.store([slot], cache, BLOCKS)
    with pytest.raises(InvalidArgumentError, match="no CUDA device"):
        FusedCopy(rig.registration, 99)
    with pytest.raises(InvalidArgumentError, match="stream"):
        rig.copy.copy([1], [1], 16, TO_GPU, stream="main")
