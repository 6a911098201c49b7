"""Registers the pool's memory with CUDA, extent by extent, so that GPUs read and write it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lmcache_beluga.gpu.cuda_runtime import CudaError

if TYPE_CHECKING:
    from lmcache_beluga.pool import Pool
    from lmcache_beluga.reservation import Reservation
    from lmcache_beluga.view import View

    Hold: TypeAlias = View | Reservation

logger = logging.getLogger("lmcache_beluga")


class Runtime(Protocol):
    """What registration needs of CUDA; raises CudaError."""

    def host_register(self, address: int, nbytes: int) -> None: ...

    def host_unregister(self, address: int) -> None: ...


class Registration:
    """The extents of a pool that GPUs can reach.

    An extent is registered as a whole when something in it is first needed: 0.08 s per GiB whose
    pages are there already, 0.37 s per GiB otherwise (measured on an H200's host). Those that hold
    chunks when the pool is attached are registered in the background. Only extents in which this
    process has a lease or a slot are: theirs alone cannot be given up, and lose their pages,
    meanwhile. After the first refusal nothing more is registered.
    """

    def __init__(self, pool: Pool, runtime: Runtime) -> None:
        self._pool = pool
        self._runtime = runtime
        self._lock = threading.Lock()
        self._registered: dict[int, int] = {}  # extent -> address
        self._refused: str = ""
        self._closing = threading.Event()
        self._ahead: threading.Thread | None = None
        pool.hold_pages()

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
        extent, address = self._pool.extent_of(hold.slot)
        if extent in self._registered:
            return True
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
            return True

    def begin_ahead(self) -> None:
        """Starts to register, in the background, the extents that hold chunks already."""
        self._ahead = threading.Thread(
            target=self._register_ahead, name="beluga-register", daemon=True
        )
        self._ahead.start()

    def _register_ahead(self) -> None:
        try:
            for entry in self._pool.one_of_each_extent():
                if self._closing.is_set() or self._refused:
                    return
                view = self._pool.get(entry.record)
                if view is not None:  # else it is registered when it is needed
                    with view:
                        self.covers(view)
        except Exception as error:  # the pool was closed, or is gone: nothing is needed any more
            if not self._closing.is_set():
                logger.warning("registering the pool's memory ahead of need ended: %s", error)

    def close(self) -> None:
        """Gives everything back to CUDA, before the pool is closed. Idempotent."""
        self._closing.set()
        if self._ahead is not None:
            self._ahead.join()
        with self._lock:
            while self._registered:
                _, address = self._registered.popitem()
                try:
                    self._runtime.host_unregister(address)
                except CudaError as error:
                    logger.warning("the pool's memory stays registered with CUDA: %s", error)
