"""Registers the pool's memory with CUDA, extent by extent, so that GPUs read and write it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lmcache_beluga.gpu.cuda_runtime import CudaError

if TYPE_CHECKING:
    from lmcache_beluga import _native
    from lmcache_beluga.pool import Pool
    from lmcache_beluga.reservation import Reservation
    from lmcache_beluga.view import View

    Hold: TypeAlias = View | _native.View | Reservation

logger = logging.getLogger("lmcache_beluga")


class Runtime(Protocol):
    """What registration needs of CUDA; raises CudaError."""

    def host_register(self, address: int, nbytes: int) -> None: ...

    def host_unregister(self, address: int) -> None: ...


_AHEAD = 4 << 30
"""Bytes of each file that are registered before they are needed."""


class Registration:
    """The extents of a pool that GPUs can reach.

    An extent is registered as a whole: 0.08 s per GiB whose pages are there already, 0.37 s per GiB
    otherwise (measured on an H200's host). ``begin_ahead`` has that done in the background, at
    first for the extents that hold chunks, then for the next ones that will be used; what is needed
    sooner is registered at once. After the first refusal nothing more is.

    An extent in which this process has a lease or a slot cannot be given up and lose its pages. One
    in which it has none is only registered ahead of use where no pages are taken away meanwhile:
    from devices, and from files that only this host uses.
    """

    def __init__(self, pool: Pool, runtime: Runtime) -> None:
        self._pool = pool
        self._slots_per_extent = pool.slots_per_extent
        self._runtime = runtime
        self._lock = threading.Lock()
        self._registered: dict[int, int] = {}  # extent -> address
        self._used: set[int] = set()
        self._refused: str = ""
        self._closing = threading.Event()
        self._use_grew = threading.Event()
        self._ahead: threading.Thread | None = None
        held = pool.hold_pages()
        self._on_devices = all(device.kind == "devdax" for device in pool.info.devices)
        self._lasting = self._on_devices or (held and pool.info.max_hosts == 1)

    @property
    def refused(self) -> str:
        """Why CUDA took no more memory; empty while it did."""
        return self._refused

    @property
    def nbytes(self) -> int:
        """Bytes registered."""
        return len(self._registered) * self._pool.info.extent_size

    def covers(self, hold: Hold) -> bool:
        """Whether GPUs can reach the chunk or slot; registers its extent if need be."""
        extent = hold.slot // self._slots_per_extent
        if extent in self._used:
            return True
        if not self._register(*self._pool.extent_of(hold.slot)):
            return False
        self._used.add(extent)
        self._use_grew.set()
        return True

    def _register(self, extent: int, address: int) -> bool:
        with self._lock:
            if extent in self._registered:
                return True
            if self._refused or self._closing.is_set():
                return False
            try:
                self._runtime.host_register(address, self._pool.info.extent_size)
            except CudaError as error:
                self._refused = str(error)
                logger.warning(
                    "CUDA refused to register the pool's memory, so chunks are copied through "
                    "LMCache's own from now on, which is slower. %s. Raise the limit on locked "
                    "memory (ulimit -l, docker: --ulimit memlock=-1) if there is one",
                    error,
                )
                return False
            self._registered[extent] = address
            if self._lasting:
                self._pool.note_kept(extent)
            return True

    def begin_ahead(self, everything: bool = False) -> None:
        """Starts to register in the background. ``everything``: all extents, whose pages then exist
        from now on; of devices, it is everything in any case."""
        self._ahead = threading.Thread(
            target=self._register_ahead,
            args=(everything or self._on_devices,),
            name="beluga-register",
            daemon=True,
        )
        self._ahead.start()

    def _register_ahead(self, everything: bool) -> None:
        try:
            for entry in self._pool.one_of_each_extent():
                if self._closing.is_set() or self._refused:
                    return
                view = self._pool.get(entry.record)
                if view is not None:  # else it is registered when it is needed
                    with view:
                        self.covers(view)
            while self._lasting and not self._refused:
                self._use_grew.clear()
                for extent in self._next_used(everything):
                    _, address = self._pool.extent_of(extent * self._slots_per_extent)
                    if not self._register(extent, address):
                        return
                self._use_grew.wait()
                if self._closing.is_set():
                    return
        except Exception as error:  # the pool was closed, or is gone: nothing is needed any more
            if not self._closing.is_set():
                logger.warning("registering the pool's memory ahead of need ended: %s", error)

    def _next_used(self, everything: bool) -> Iterator[int]:
        """Extents that are not registered: of each file, those behind the last that is used."""
        begin = 0
        for device in self._pool.info.devices:
            extents = range(begin, begin + device.extents)
            begin = extents.stop
            if not everything:
                used = max((extent for extent in self._used if extent in extents), default=-1)
                ahead = max(1, _AHEAD // self._pool.info.extent_size)
                extents = range(
                    extents.start, min(extents.stop, max(used, extents.start - 1) + 1 + ahead)
                )
            yield from (extent for extent in extents if extent not in self._registered)

    def close(self) -> None:
        """Gives everything back to CUDA, before the pool is closed. Idempotent."""
        self._closing.set()
        self._use_grew.set()
        if self._ahead is not None:
            self._ahead.join()
        with self._lock:
            while self._registered:
                _, address = self._registered.popitem()
                try:
                    self._runtime.host_unregister(address)
                except CudaError as error:
                    logger.warning("the pool's memory stays registered with CUDA: %s", error)
