"""Copies between the pool and GPU memory in one launch, for callers without LMCache.

    cache = PagedCache.of(kv_tensors)                  # vLLM's, one tensor per layer
    copy = FusedCopy(Registration(pool, CudaRuntime(0)))

    slot = pool.reserve(cache.chunk_bytes(256))        # store
    copy.store([slot], cache, block_ids).commit([key], metas=[cache.chunk_meta(256)])

    view = pool.get(key)                               # load
    if copy.load([view], cache, block_ids).lost():
        ...                                            # a miss after all
    view.release()

Chunks are laid out as LMCache's are, so that either finds what the other has stored: keys and
values apart, in each layer after layer, in each token after token (``KV_2LTD``); with MLA layer
after layer (``KV_MLA_FMT``).
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from lmcache_beluga.errors import InvalidArgumentError, UnsupportedError
from lmcache_beluga.gpu.chunk_table import TILE, ChunkTable, Piece, magic_of, width_of
from lmcache_beluga.gpu.copy_arguments import addresses, block_ids, pieces_of, thread_blocks_of
from lmcache_beluga.gpu.copy_engines import Addresses
from lmcache_beluga.gpu.copy_method import MEASURED, Crossover, Direction, Method, method_for
from lmcache_beluga.gpu.cuda_device import CudaDevice
from lmcache_beluga.gpu.device import THREADS, Device, Event, Fault, Memory
from lmcache_beluga.gpu.paged_cache import PagedCache
from lmcache_beluga.gpu.transfer import Load, Store, Transfer

if TYPE_CHECKING:
    from lmcache_beluga.reservation import Reservation
    from lmcache_beluga.view import View

#: Of fragments of this size and more, so few thread blocks fill the bus of an H200, and leave its
#: other 100 processors to the model. With half of them or four times as many, copies are 1 to 2 %
#: slower.
_FEW_BLOCKS_FROM, _FEW_BLOCKS = 4 << 10, 32
_WARPS = THREADS // 32


class Reach(Protocol):
    """What is needed of :class:`~lmcache_beluga.gpu.registration.Registration`."""

    @property
    def refused(self) -> str: ...

    def covers(self, hold: Any) -> bool: ...


T = TypeVar("T", bound=Transfer)


class FusedCopy:
    """Copies between one pool and one GPU. Thread-safe.

    All methods return at once, with a :class:`~lmcache_beluga.gpu.transfer.Transfer` that tells
    when the bytes are there. They are ordered by ``stream``: torch's (None: its current one),
    CuPy's, or a raw handle.
    """

    def __init__(
        self,
        reach: Reach | None = None,
        device: Device | int | None = None,
        crossover: Mapping[Direction, Crossover] = MEASURED,
    ) -> None:
        """``reach``: the pool's registration with CUDA; without it there is only :meth:`copy`.
        ``device``: ordinal of the GPU (None: torch's current one).

        Raises UnsupportedError without a GPU, torch or CuPy.
        """
        self._reach = reach
        if device is None or isinstance(device, int):
            device = CudaDevice(device)
        self._device: Device = device
        self._crossover = crossover
        self._lock = threading.Lock()
        self._running: list[Transfer] = []

    def store(
        self,
        slots: Sequence[Reservation],
        cache: PagedCache,
        blocks: Any,
        *,
        tokens: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
        thread_blocks: int | None = None,
        stream: object = None,
    ) -> Store:
        """From a paged cache into slots of the pool, any number in one launch.

        ``blocks``: ids of the cache's blocks, in the order of their tokens: a sequence, an array,
        or a tensor of integers, also one on this GPU. ``tokens``: of each chunk; by default what
        fills its slot. ``starts``: where each chunk's first token lies, counted from the first
        token of the first of ``blocks``; by default chunks follow one another. ``thread_blocks``:
        how many processors of the GPU it may occupy.

        The result's :meth:`~lmcache_beluga.gpu.transfer.Store.commit` waits, then publishes. Do
        not commit the slots before the transfer is done, nor give them back.

        Raises InvalidArgumentError for whatever does not fit together, UnsupportedError where CUDA
        has refused the pool's memory, CudaError.
        """
        if any(slot.done for slot in slots):
            raise InvalidArgumentError("a slot was committed or aborted already")
        pieces = pieces_of(slots, cache, tokens, starts)
        event, keep, fault = self._paged(slots, pieces, cache, blocks, True, thread_blocks, stream)
        sizes = [cache.chunk_bytes(piece.tokens) for piece in pieces]
        return self._remember(Store(slots, sizes, event, keep, fault))

    def load(
        self,
        views: Sequence[View],
        cache: PagedCache,
        blocks: Any,
        *,
        tokens: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
        thread_blocks: int | None = None,
        stream: object = None,
    ) -> Load:
        """From chunks of the pool into a paged cache; arguments and errors as of :meth:`store`.

        The leases must live until the transfer is done: ask the result's
        :meth:`~lmcache_beluga.gpu.transfer.Load.lost` before anybody uses what was loaded.
        """
        if any(view.released for view in views):
            raise InvalidArgumentError("a view was released already")
        pieces = pieces_of(views, cache, tokens, starts)
        event, keep, fault = self._paged(views, pieces, cache, blocks, False, thread_blocks, stream)
        return self._remember(Load(views, event, keep, fault))

    def copy(
        self,
        to: Any,
        source: Any,
        nbytes: int,
        direction: Direction,
        *,
        method: Method | None = None,
        thread_blocks: int | None = None,
        stream: object = None,
    ) -> Transfer:
        """Fragment ``i``, ``nbytes`` long, from address ``source[i]`` to address ``to[i]``.

        Of any size and alignment; multiples of 16 bytes are the fastest. The addresses, sequences
        of integers or int64 tensors on this GPU, are not checked: the GPU must reach all of them
        (of the pool: what the registration covers). Fragments must not overlap. ``method``: by
        default the fastest, and for addresses on the GPU the fused kernel.

        Raises InvalidArgumentError, UnsupportedError (no batched copy in this CUDA), CudaError.
        """
        if nbytes < 1:
            raise InvalidArgumentError("a fragment has at least one byte")
        thread_blocks_of(thread_blocks)
        handle = self._device.stream(stream)
        targets = self._device.words(to, handle) or addresses(to)
        sources = self._device.words(source, handle) or addresses(source)
        count = _count(targets)
        if count != _count(sources):
            raise InvalidArgumentError(f"{count} targets for {_count(sources)} sources")
        if count == 0:
            return Transfer(None)
        if not isinstance(targets, Memory) and not isinstance(sources, Memory):
            if method is None:
                batches = self._device.batches
                method = method_for(direction, nbytes, count, batches, self._crossover)
            if method is not Method.FUSED:
                return self._by_engines(method, targets, sources, nbytes, handle)
        elif method not in (None, Method.FUSED):
            raise InvalidArgumentError("the copy engines take addresses from the host only")
        return self._fragments(targets, sources, nbytes, thread_blocks, handle)

    def close(self) -> None:
        """Waits for everything that is under way; before the pool's registration is closed."""
        with self._lock:
            running, self._running = self._running, []
        for transfer in running:
            transfer.over(wait=True)

    def _by_engines(
        self, method: Method, to: Addresses, source: Addresses, nbytes: int, stream: int
    ) -> Transfer:
        if method is Method.EACH:
            self._device.copy_each(to, source, nbytes, stream)
        elif self._device.batches:
            self._device.copy_batch(to, source, nbytes, stream)
        else:
            raise UnsupportedError("the batched copy needs CUDA 12.8 or later")
        return self._remember(Transfer(self._device.record(stream), (to, source)))

    def _fragments(
        self,
        targets: Memory | Addresses,
        sources: Memory | Addresses,
        nbytes: int,
        thread_blocks: int | None,
        stream: int,
    ) -> Transfer:
        device = self._device
        sides = (targets, sources)
        # Addresses on the GPU are taken to be aligned; the kernel copes with those that are not.
        known = [int(np.bitwise_or.reduce(one)) for one in sides if not isinstance(one, Memory)]
        width = width_of(reduce(operator.or_, known, 0))
        each = -(-nbytes // width)
        total = each * _count(targets)
        arguments = (total, nbytes, each, magic_of(each, total))
        there = [one for one in sides if not isinstance(one, Memory)]
        uploaded = device.upload(there, stream) if there else None
        at = uploaded.address if uploaded else 0
        places = []
        for one in sides:
            places.append(one.address if isinstance(one, Memory) else at)
            at += 0 if isinstance(one, Memory) else 8 * one.size
        device.launch(
            "copy_fragments",
            width,
            self._thread_blocks(thread_blocks, nbytes, -(-total // TILE)),
            [np.uint64(number) for number in (*places, *arguments)],
            stream,
        )
        return self._remember(Transfer(device.record(stream), (sides, uploaded)))

    def _paged(
        self,
        holds: Sequence[Any],
        pieces: list[Piece],
        cache: PagedCache,
        blocks: Any,
        to_slots: bool,
        thread_blocks: int | None,
        stream: object,
    ) -> tuple[Event | None, object, Fault | None]:
        """What tells when it is done, what it needs until then, and what is wrong."""
        device = self._device
        if cache.device and cache.device != device.name:
            raise InvalidArgumentError(f"the paged cache is on {cache.device}, not {device.name}")
        thread_blocks_of(thread_blocks)
        self._check_reach(holds)
        handle = device.stream(stream)
        ids = device.words(blocks, handle) or block_ids(blocks, cache)
        end = max((piece.first + piece.tokens for piece in pieces), default=0)
        if end > _count(ids) * cache.block_tokens:
            raise InvalidArgumentError(
                f"{_count(ids)} blocks of {cache.block_tokens} tokens do not hold {end} tokens"
            )
        if not pieces:
            return None, None, None
        table = ChunkTable.of(cache, pieces)
        layers = np.array(cache.layers, dtype=np.uint64)
        parts = [table.words, layers] if isinstance(ids, Memory) else [table.words, layers, ids]
        words = device.upload(parts, handle)
        layers_at = words.address + 8 * table.words.size
        ids_at = ids.address if isinstance(ids, Memory) else layers_at + 8 * layers.size
        fault = device.fault() if isinstance(ids, Memory) else None
        device.launch(
            "copy_paged",
            table.width,
            self._thread_blocks(thread_blocks, cache.block_bytes, table.tiles),
            [
                np.uint64(layers_at),
                np.uint64(ids_at),
                np.uint64(words.address),
                np.uint32(len(pieces)),
                np.uint64(table.tiles),
                np.uint32(len(cache.layers)),
                np.uint64(cache.half_stride),
                np.uint64(cache.block_stride),
                np.uint64(cache.blocks),
                np.uint64(table.block_accesses),
                np.uint64(table.block_magic),
                np.uint32(to_slots),
                np.uint64(fault.address if fault else 0),
            ],
            handle,
        )
        return device.record(handle), (words, ids, cache), fault

    def _check_reach(self, holds: Sequence[Any]) -> None:
        reach = self._reach
        if reach is None:
            raise InvalidArgumentError("made without the pool's registration: copy() only")
        if not all(reach.covers(hold) for hold in holds):
            raise UnsupportedError(
                f"the GPU cannot reach the pool: {reach.refused or 'its registration is closed'}"
            )

    def _thread_blocks(self, wanted: int | None, fragment: int, tiles: int) -> int:
        """No more than have something to do."""
        if wanted is None:
            wanted = self._device.processors
            if fragment >= _FEW_BLOCKS_FROM:
                wanted = min(wanted, _FEW_BLOCKS)
        return max(1, min(wanted, -(-tiles // _WARPS)))

    def _remember(self, transfer: T) -> T:
        """Keeps alive what the GPU still uses; forgets what it does not."""
        with self._lock:
            running: list[Transfer] = [*self._running, transfer]
            self._running = [one for one in running if not one.over()]
        return transfer


def _count(words: Memory | Addresses) -> int:
    return words.count if isinstance(words, Memory) else words.size
