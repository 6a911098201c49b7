"""The fused copy without a GPU: its kernels compiled for the CPU, on real pools.

What a GPU alone can show is in test_fused_copy_cuda.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cpu_device import STREAM, CpuDevice, OnGpu, bytes_like
from paged_reference import chunk, random_cache
from recording_runtime import RecordingRuntime

from lmcache_beluga.errors import InvalidArgumentError, UnsupportedError
from lmcache_beluga.gpu.chunk_table import magic_of
from lmcache_beluga.gpu.copy_method import Direction, Method
from lmcache_beluga.gpu.cuda_runtime import CudaError
from lmcache_beluga.gpu.fused_copy import FusedCopy
from lmcache_beluga.gpu.paged_cache import PagedCache, Paging
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool, PutResult

BLOCKS = [7, 3, 22, 0, 11, 5, 19, 2, 13, 1]
TO_GPU, TO_POOL = Direction.TO_GPU, Direction.TO_POOL


@pytest.fixture
def pool(pool_path: Path) -> Iterator[Pool]:
    Pool.format(pool_path, size=16 << 20, extent_size=1 << 20, chunk_hint=64 << 10)
    with Pool.attach(pool_path) as pool:
        yield pool


class Rig:
    """A pool, registered, and a paged cache of random bytes."""

    def __init__(
        self, pool: Pool, paging: Paging = Paging.HALVES_FIRST, eager: bool = True
    ) -> None:
        self.pool = pool
        self.device = CpuDevice(eager)
        self.registration = Registration(pool, RecordingRuntime())
        self.copy = FusedCopy(self.registration, self.device)
        self.paging = paging
        self.layers = random_cache(paging)
        self.cache = PagedCache.of(self.layers)


def filled(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


# ---- fragments


@pytest.mark.parametrize("nbytes", [1, 2, 15, 16, 17, 160, 1000, 1024, 4096, 4100, 20_480])
def test_fragments_of_any_size_and_alignment(nbytes: int) -> None:
    copy = FusedCopy(device=CpuDevice())
    count = 37
    for to_shift, from_shift in [(0, 0), (1, 0), (8, 8), (4, 2), (16, 3)]:
        gap = nbytes + 64
        source = bytes_like(count * gap + 64, seed=nbytes)
        target = torch.zeros_like(source)
        order = random.Random(nbytes).sample(range(count), count)
        begins = [source.data_ptr() + from_shift + i * gap for i in range(count)]
        ends = [target.data_ptr() + to_shift + i * gap for i in order]
        copy.copy(ends, begins, nbytes, TO_GPU, method=Method.FUSED).wait()
        expected = torch.zeros_like(target)
        for i, j in enumerate(order):
            begin = from_shift + i * gap
            expected[to_shift + j * gap :][:nbytes] = source[begin : begin + nbytes]
        assert torch.equal(target, expected), "and nothing beside them is written"


def test_the_widest_accesses_that_addresses_allow() -> None:
    device = CpuDevice()
    copy = FusedCopy(device=device)
    source, target = bytes_like(4096, 1), torch.zeros(4096, dtype=torch.uint8)
    assert source.data_ptr() % 64 == target.data_ptr() % 64 == 0
    for shift, width in [(0, 16), (32, 16), (8, 8), (4, 4), (2, 2), (1, 1)]:
        to = [target.data_ptr() + shift]
        copy.copy(to, [source.data_ptr()], 1000, TO_GPU, method=Method.FUSED).wait()
        assert device.launches.pop() == ("copy_fragments", width, 1)


def test_addresses_on_the_gpu_may_be_misaligned() -> None:
    copy = FusedCopy(device=CpuDevice())
    source, target = bytes_like(4096, 1), torch.zeros(4096, dtype=torch.uint8)
    begins = [source.data_ptr() + at for at in (0, 256, 517)]
    ends = [target.data_ptr() + at for at in (0, 261, 520)]
    copy.copy(OnGpu(ends), OnGpu(begins), 250, TO_POOL).wait()
    assert torch.equal(target[:250], source[:250])
    assert torch.equal(target[261:511], source[256:506])
    assert torch.equal(target[520:770], source[517:767])
    assert not target[250:261].any() and not target[770:].any()


def test_ten_thousand_fragments() -> None:
    copy = FusedCopy(device=CpuDevice())
    count, nbytes = 10_000, 160
    source, target = bytes_like(count * nbytes, 5), torch.zeros(count * nbytes, dtype=torch.uint8)
    order = np.random.default_rng(5).permutation(count).astype(np.uint64)
    begins = np.uint64(source.data_ptr()) + order * np.uint64(nbytes)
    ends = np.uint64(target.data_ptr()) + np.arange(count, dtype=np.uint64) * np.uint64(nbytes)
    copy.copy(ends, begins, nbytes, TO_POOL).wait()
    assert torch.equal(target.view(count, nbytes), source.view(count, nbytes)[order.tolist()])


def test_division_by_multiplication() -> None:
    numbers = random.Random(3)
    for divisor in [1, 2, 3, 5, 7, 10, 16, 640, 1280, 65_537, (1 << 31) - 1]:
        largest = (1 << 64) // divisor - 1
        magic = magic_of(divisor, largest)
        edges = [0, 1, divisor - 1, divisor, divisor + 1, largest - 1, largest]
        for value in edges + [numbers.randrange(largest) for _ in range(200)]:
            quotient = value if divisor == 1 else value * magic >> 64
            assert quotient == value // divisor
    with pytest.raises(InvalidArgumentError):
        magic_of(1 << 32, 1 << 32)


def test_how_many_thread_blocks() -> None:
    device = CpuDevice()
    copy = FusedCopy(device=device)
    memory = torch.zeros(8 << 20, dtype=torch.uint8)
    half = memory.nbytes // 2

    def blocks(nbytes: int, wanted: int | None = None) -> int:
        begins = np.arange(memory.data_ptr(), memory.data_ptr() + half, nbytes)
        copy.copy(
            begins + half, begins, nbytes, TO_GPU, method=Method.FUSED, thread_blocks=wanted
        ).wait()
        return device.launches.pop()[2]

    assert blocks(4 << 10) == 32, "few are enough, and the others are the model's"
    assert blocks(1 << 10) == 64, "all that have something to do: 64 KiB each"
    assert blocks(1 << 10, wanted=5) == 5
    assert blocks(1 << 20, wanted=100) == 64


# ---- paged KV


@pytest.mark.parametrize("paging", Paging)
def test_chunks_are_laid_out_as_lmcache_does(pool: Pool, paging: Paging) -> None:
    """Also partial ones, of any lengths, in one launch."""
    rig = Rig(pool, paging)
    tokens = [64, 64, 23, 1]
    slots = [pool.reserve(rig.cache.chunk_bytes(count)) for count in tokens]
    store = rig.copy.store(slots, rig.cache, BLOCKS)
    keys = [b"%d" % i for i in range(len(tokens))]
    assert store.commit(keys) == [PutResult.STORED] * len(tokens)
    views = pool.get_batch(keys)
    start = 0
    for view, count in zip(views, tokens, strict=True):
        expected = chunk(rig.layers, paging, BLOCKS, start, count)
        assert torch.equal(filled(view.array), expected)
        start += count
    wanted = [layer.clone() for layer in rig.layers]
    for layer in rig.layers:
        layer.view(torch.uint8).fill_(0xA5)
    assert rig.copy.load(views, rig.cache, BLOCKS).lost() == []
    for i, view in enumerate(views):
        start = sum(tokens[:i])
        loaded = chunk(rig.layers, paging, BLOCKS, start, tokens[i])
        assert torch.equal(loaded, filled(view.array))
    untouched = sorted(set(range(rig.cache.blocks)) - set(BLOCKS))
    for layer, before in zip(rig.layers, wanted, strict=True):
        blocks = 1 if paging is Paging.HALVES_FIRST else 0
        index = torch.tensor(untouched)
        rest = layer.index_select(blocks, index).contiguous().view(torch.uint8)
        assert (rest == 0xA5).all(), "other blocks are left alone"
        assert before.shape == layer.shape
    assert [launch[0] for launch in rig.device.launches] == ["copy_paged"] * 2
    assert all(launch[1] == 16 for launch in rig.device.launches)


@pytest.mark.parametrize(
    ("heads", "width", "dtype", "access"),
    [
        (1, 576, torch.bfloat16, 16),  # DeepSeek's latent
        (1, 656, torch.uint8, 16),  # the same, quantized, as vLLM packs it
        (5, 128, torch.bfloat16, 16),
        (3, 4, torch.bfloat16, 8),
        (1, 3, torch.float32, 4),
        (1, 5, torch.float16, 2),
        (3, 7, torch.uint8, 1),
    ],
)
@pytest.mark.parametrize("paging", Paging)
def test_any_width(
    pool: Pool, paging: Paging, heads: int, width: int, dtype: torch.dtype, access: int
) -> None:
    rig = Rig(pool, paging)
    layers = random_cache(paging, size=4, heads=heads, width=width, dtype=dtype)
    cache = PagedCache.of(layers)
    slots = [pool.reserve(cache.chunk_bytes(count)) for count in (8, 8, 3)]
    rig.copy.store(slots, cache, BLOCKS[:5]).commit([b"0", b"1", b"2"])
    assert rig.device.launches[-1][1] == access
    for i, view in enumerate(pool.get_batch([b"0", b"1", b"2"])):
        assert torch.equal(
            filled(view.array), chunk(layers, paging, BLOCKS[:5], 8 * i, (8, 8, 3)[i])
        )
        view.release()


def test_one_layer_is_as_good_as_many(pool: Pool) -> None:
    """An MLA model of one layer: the kernel divides by 1 and by powers of two."""
    rig = Rig(pool)
    layers = random_cache(Paging.LATENT, layers=1, size=1, heads=1, width=16, dtype=torch.uint8)
    cache = PagedCache.of(layers)
    assert cache.bytes_per_token == 16
    slot = pool.reserve(cache.chunk_bytes(5))
    rig.copy.store([slot], cache, BLOCKS).commit([b"k"])
    with pool.get(b"k") as view:
        assert torch.equal(filled(view.array), chunk(layers, Paging.LATENT, BLOCKS, 0, 5))


def test_several_prompts_in_one_launch(pool: Pool) -> None:
    """Each begins in a block of its own, wherever the one before has ended."""
    rig = Rig(pool)
    slots = [pool.reserve(rig.cache.chunk_bytes(count)) for count in (20, 33)]
    rig.copy.store(slots, rig.cache, BLOCKS, starts=[0, 32]).commit([b"0", b"1"])
    for i, (start, count) in enumerate([(0, 20), (32, 33)]):
        with pool.get(b"%d" % i) as view:
            expected = chunk(rig.layers, rig.paging, BLOCKS, start, count)
            assert torch.equal(filled(view.array), expected)


def test_part_of_a_slot(pool: Pool) -> None:
    """A slot for a whole chunk, and fewer tokens than that."""
    rig = Rig(pool)
    slot = pool.reserve(rig.cache.chunk_bytes(64))
    rig.copy.store([slot], rig.cache, BLOCKS, tokens=[10]).commit([b"k"])
    with pool.get(b"k") as view:
        assert view.size == rig.cache.chunk_bytes(10)
        assert torch.equal(filled(view.array), chunk(rig.layers, rig.paging, BLOCKS, 0, 10))


def test_a_cache_of_bare_pointers(pool: Pool) -> None:
    rig = Rig(pool)
    cache = PagedCache(
        layers=tuple(layer.data_ptr() for layer in rig.layers),
        blocks=23,
        block_tokens=16,
        token_bytes=64,
        block_stride=1024,
        half_stride=23 * 1024,
    )
    slot = pool.reserve(cache.chunk_bytes(16))
    rig.copy.store([slot], cache, [5]).commit([b"k"])
    with pool.get(b"k") as view:
        assert torch.equal(filled(view.array), chunk(rig.layers, rig.paging, [5], 0, 16))


def test_a_cache_with_gaps(pool: Pool) -> None:
    """Blocks of one allocation that other layers share."""
    rig = Rig(pool)
    whole = random_cache(Paging.BLOCKS_FIRST, layers=1, heads=12)[0]
    layers = [whole.view(23, 3, 2, 16, 4, 8)[:, layer] for layer in range(3)]
    slot = pool.reserve(PagedCache.of(layers).chunk_bytes(40))
    rig.copy.store([slot], PagedCache.of(layers), BLOCKS).commit([b"k"])
    with pool.get(b"k") as view:
        expected = chunk(layers, Paging.BLOCKS_FIRST, BLOCKS, 0, 40)
        assert torch.equal(filled(view.array), expected)


@pytest.mark.parametrize("paging", Paging)
def test_lmcache_reads_what_was_stored(pool: Pool, paging: Paging) -> None:
    """LMCache's own transfer, on the CPU, makes the same chunk of the same cache."""
    mem_kernels = pytest.importorskip("lmcache.v1.platform.torch_ops.mem_kernels")
    from lmcache import lmcache_native
    from lmcache.v1.memory_management import MemoryFormat

    from lmcache_beluga.engines.layout import Layout

    kinds = {
        Paging.HALVES_FIRST: "NL_X_TWO_NB_BS_NH_HS",
        Paging.BLOCKS_FIRST: "NL_X_NB_TWO_BS_NH_HS",
        Paging.LATENT: "NL_X_NB_BS_HS",
    }
    rig = Rig(pool, paging)
    tokens, width = 40, 4 * 8
    slots = torch.tensor([BLOCKS[i // 16] * 16 + i % 16 for i in range(tokens)])
    halves = 1 if paging is Paging.LATENT else 2
    theirs = torch.zeros((halves, len(rig.layers), tokens, width), dtype=torch.bfloat16)
    if paging is Paging.LATENT:
        layers = [layer.view(-1, width) for layer in rig.layers]
    elif paging is Paging.HALVES_FIRST:
        layers = [layer.view(2, -1, width) for layer in rig.layers]
    else:
        layers = [layer.view(23, 2, 16, width) for layer in rig.layers]
    mem_kernels.multi_layer_kv_transfer(
        theirs,
        layers,
        slots,
        torch.device("cpu"),
        23 * 16,
        lmcache_native.TransferDirection.D2H,
        getattr(lmcache_native.EngineKVFormat, kinds[paging]),
        block_size=16,
    )
    slot = pool.reserve(rig.cache.chunk_bytes(tokens))
    meta = rig.cache.chunk_meta(tokens)
    rig.copy.store([slot], rig.cache, BLOCKS).commit([b"k"], metas=[meta])
    with pool.get(b"k") as view:
        assert torch.equal(filled(view.array), theirs.view(torch.uint8).reshape(-1))
        fmt = MemoryFormat.KV_MLA_FMT if paging is Paging.LATENT else MemoryFormat.KV_2LTD
        assert view.meta == Layout.of(theirs.shape, theirs.dtype, fmt).packed()


# ---- order


def test_slots_are_published_after_the_last_byte(pool: Pool) -> None:
    rig = Rig(pool, eager=False)
    slot = pool.reserve(rig.cache.chunk_bytes(32))
    slot.array[:] = 0
    store = rig.copy.store([slot], rig.cache, BLOCKS)
    assert rig.device.calls == ["upload", "launch", "record"]
    assert not store.done and not slot.array.any()
    assert store.commit([b"k"]) == [PutResult.STORED]
    assert rig.device.calls[-1] == "wait" and store.done
    with pool.get(b"k") as view:
        assert torch.equal(filled(view.array), chunk(rig.layers, rig.paging, BLOCKS, 0, 32))


def test_nothing_is_published_after_a_failure(pool: Pool) -> None:
    rig = Rig(pool, eager=False)
    slot = pool.reserve(rig.cache.chunk_bytes(32))
    store = rig.copy.store([slot], rig.cache, BLOCKS)
    rig.device.failure = CudaError("cudaEventSynchronize", 700, "an illegal memory access")
    with pytest.raises(CudaError, match="illegal"):
        store.commit([b"k"])
    assert not slot.done and pool.get(b"k") is None
    rig.copy.close()


def test_a_lost_lease_is_told(pool: Pool) -> None:
    rig = Rig(pool, eager=False)
    slots = [pool.reserve(rig.cache.chunk_bytes(32)) for _ in range(3)]
    keys = [b"0", b"1", b"2"]
    rig.copy.store(slots, rig.cache, BLOCKS).commit(keys)
    views = pool.get_batch(keys)
    rig.device.calls.clear()
    load = rig.copy.load(views, rig.cache, BLOCKS)
    views[1].release()
    assert load.lost() == [1]
    assert rig.device.calls == ["upload", "launch", "record", "wait"]


def test_what_is_dropped_lives_until_the_gpu_is_done(pool: Pool) -> None:
    rig = Rig(pool, eager=False)
    before = pool.stats()
    rig.copy.store([pool.reserve(rig.cache.chunk_bytes(32))], rig.cache, BLOCKS)
    held = {name for name, value in pool.stats().items() if value != before[name]}
    assert held, "the slot is still taken"
    rig.copy.close()
    assert rig.device.calls[-1] == "wait"


def test_everything_goes_to_the_stream_that_was_named(pool: Pool) -> None:
    rig = Rig(pool)
    slot = pool.reserve(rig.cache.chunk_bytes(16))
    rig.copy.store([slot], rig.cache, BLOCKS).wait()
    assert set(rig.device.streams) == {STREAM}, "torch's current one"
    rig.device.streams.clear()
    rig.copy.store([slot], rig.cache, BLOCKS, stream=5).wait()
    source, target = bytes_like(64, 1), torch.zeros(64, dtype=torch.uint8)
    for method in Method:
        to, begin = [target.data_ptr()], [source.data_ptr()]
        rig.copy.copy(to, begin, 64, TO_GPU, method=method, stream=5).wait()
        assert torch.equal(target, source)
        target.zero_()
    assert set(rig.device.streams) == {5}
    with pytest.raises(InvalidArgumentError, match="no CUDA stream"):
        rig.copy.store([slot], rig.cache, BLOCKS, stream="main")


# ---- what does not fit is refused before anything is started


def test_block_ids_are_checked(pool: Pool) -> None:
    rig = Rig(pool)
    slot = pool.reserve(rig.cache.chunk_bytes(32))
    slot.array[:] = 0
    for wrong in ([1, 23], [-1, 2], [1], [], [1.5, 2.0], [[1, 2]], None, "ab", [True, False]):
        with pytest.raises(InvalidArgumentError):
            rig.copy.store([slot], rig.cache, wrong)
    assert rig.device.launches == []
    for fitting in ((1, 2), np.array([1, 2], dtype=np.int32), torch.tensor([1, 2])):
        rig.copy.store([slot], rig.cache, fitting).wait()
        assert torch.equal(filled(slot.array), chunk(rig.layers, rig.paging, [1, 2], 0, 32))
        slot.array[:] = 0


@pytest.mark.parametrize("wrong", [23, -1, 1 << 40])
def test_block_ids_on_the_gpu_are_checked_there(pool: Pool, wrong: int) -> None:
    rig = Rig(pool)
    slot = pool.reserve(rig.cache.chunk_bytes(32))
    slot.array[:] = 0
    store = rig.copy.store([slot], rig.cache, OnGpu([3, wrong]))
    with pytest.raises(InvalidArgumentError, match="range"):
        store.commit([b"k"])
    assert pool.get(b"k") is None
    rig.copy.store([slot], rig.cache, OnGpu([3, 4])).commit([b"k"])
    with pool.get(b"k") as view:
        assert torch.equal(filled(view.array), chunk(rig.layers, rig.paging, [3, 4], 0, 32))


def test_chunks_that_do_not_fit_the_cache(pool: Pool) -> None:
    rig = Rig(pool)
    each = rig.cache.bytes_per_token
    odd, slot = pool.reserve(each + 1), pool.reserve(2 * each)
    for arguments in (
        ([odd], {}),
        ([slot], {"tokens": [3]}),
        ([slot], {"tokens": [0]}),
        ([slot], {"tokens": [-1]}),
        ([slot], {"tokens": [1, 1]}),
        ([slot], {"starts": [-1]}),
        ([slot], {"starts": [10 * 16 - 1]}),
        ([slot], {"starts": [0, 1]}),
        ([slot], {"thread_blocks": 0}),
    ):
        slots, options = arguments
        with pytest.raises(InvalidArgumentError):
            rig.copy.store(slots, rig.cache, BLOCKS, **options)
    assert rig.device.launches == []
    assert rig.copy.store([], rig.cache, []).commit([]) == []
    store = rig.copy.store([slot], rig.cache, BLOCKS)
    with pytest.raises(InvalidArgumentError):
        store.commit([])
    store.commit([b"k"])
    with pytest.raises(InvalidArgumentError, match="committed"):
        rig.copy.store([slot], rig.cache, BLOCKS)
    view = pool.get(b"k")
    view.release()
    with pytest.raises(InvalidArgumentError, match="released"):
        rig.copy.load([view], rig.cache, BLOCKS)


def test_memory_that_the_gpu_cannot_reach(pool: Pool) -> None:
    rig = Rig(pool)
    slot = pool.reserve(rig.cache.chunk_bytes(16))
    with pytest.raises(InvalidArgumentError, match="registration"):
        FusedCopy(device=rig.device).store([slot], rig.cache, BLOCKS)
    refusing = FusedCopy(Registration(pool, RecordingRuntime(refuse=0)), rig.device)
    with pytest.raises(UnsupportedError, match="out of memory"):
        refusing.store([slot], rig.cache, BLOCKS)
    assert rig.device.launches == []
    elsewhere = PagedCache(**{**vars(rig.cache), "device": "cuda:1"})
    with pytest.raises(InvalidArgumentError, match="cuda:1"):
        rig.copy.store([slot], elsewhere, BLOCKS)


def test_fragments_that_cannot_be() -> None:
    copy = FusedCopy(device=CpuDevice(batches=False))
    memory = torch.zeros(64, dtype=torch.uint8)
    at = memory.data_ptr()
    for to, source, nbytes in (
        ([at], [at, at + 16], 16),
        ([0], [at], 16),
        ([-1], [at], 16),
        ([at], [at], 0),
        (["x"], [at], 16),
        ([1.0], [at], 16),
        (at, at, 16),
    ):
        for method in (None, *Method):
            with pytest.raises(InvalidArgumentError):
                copy.copy(to, source, nbytes, TO_GPU, method=method)
    with pytest.raises(UnsupportedError, match=r"12\.8"):
        copy.copy([at], [at + 32], 16, TO_GPU, method=Method.BATCH)
    with pytest.raises(InvalidArgumentError, match="host"):
        copy.copy(OnGpu([at]), [at + 32], 16, TO_GPU, method=Method.EACH)
    assert copy.copy([], [], 16, TO_GPU).done


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UnsupportedError, match="CUDA device"):
        FusedCopy()


# ---- descriptions of caches


def test_layouts_are_told_apart() -> None:
    for paging in Paging:
        layers = random_cache(paging)
        assert PagedCache.of(layers) == PagedCache.of(layers, paging)
    two = [torch.zeros((2, 2, 16, 4, 8))]
    with pytest.raises(InvalidArgumentError, match="say which"):
        PagedCache.of(two)
    apart = PagedCache.of(two, Paging.HALVES_FIRST)
    together = PagedCache.of(two, Paging.BLOCKS_FIRST)
    assert (apart.block_stride, apart.half_stride) == (together.half_stride, together.block_stride)


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [torch.zeros(2, 3)],
        [torch.zeros((3, 4, 16, 4, 8))],
        [torch.zeros((5, 16, 4, 16))],  # keys and values packed: not LMCache's chunks
        [torch.zeros((2, 5, 4, 16, 8)).transpose(2, 3)],  # heads before tokens
        [torch.zeros((2, 5, 16, 4, 8)), torch.zeros((2, 6, 16, 4, 8))],
        [torch.zeros((2, 5, 16, 4, 8)), torch.zeros((2, 5, 16, 4, 8), dtype=torch.float16)],
    ],
    ids=itertools.count(),
)
def test_tensors_that_are_no_paged_cache(layers: list[torch.Tensor]) -> None:
    with pytest.raises(InvalidArgumentError):
        PagedCache.of(layers)


def test_numbers_that_are_no_paged_cache() -> None:
    good = dict(layers=(64,), blocks=2, block_tokens=4, token_bytes=8, block_stride=32)
    assert PagedCache(**good).halves == 1
    for bad in (
        {"layers": ()},
        {"layers": (0,)},
        {"blocks": 0},
        {"token_bytes": 0},
        {"block_stride": 31},
        {"half_stride": 8},
        {"half_stride": -64},
        {"element_bytes": 3},
    ):
        with pytest.raises(InvalidArgumentError):
            PagedCache(**{**good, **bad})
