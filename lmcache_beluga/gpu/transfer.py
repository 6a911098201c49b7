"""A copy between the pool and a GPU that is under way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmcache_beluga.errors import InvalidArgumentError
from lmcache_beluga.gpu.cuda_runtime import CudaError

if TYPE_CHECKING:
    from lmcache_beluga.gpu.device import Event, Fault
    from lmcache_beluga.pool_info import PutResult
    from lmcache_beluga.reservation import Key, Reservation
    from lmcache_beluga.view import View

logger = logging.getLogger("lmcache_beluga")


class Transfer:
    """Bytes on their way; all are there once :meth:`wait` has returned.

    Until then, neither end may be written, read or given back. What the copy needs is kept alive
    meanwhile, even if this object is dropped.
    """

    def __init__(self, event: Event | None, keep: Any = None, fault: Fault | None = None) -> None:
        """``event``: None when there was nothing to do."""
        self._event = event
        self._keep = keep
        self._fault = fault

    @property
    def done(self) -> bool:
        """Whether :meth:`wait` would return at once. Raises CudaError when the GPU's work
        failed."""
        event = self._event
        return event is None or event.done()

    def wait(self) -> None:
        """Waits for the last byte.

        Raises CudaError when the GPU's work failed, and InvalidArgumentError when a block id in a
        tensor on the GPU was out of range: nothing was copied to or from that block.
        """
        event = self._event
        if event is not None:
            event.wait()
            self._event = self._keep = None
        if self._fault is not None and self._fault.raised():
            raise InvalidArgumentError("a block id is out of the paged cache's range")

    def over(self, wait: bool = False) -> bool:
        """Whether the GPU uses nothing of it any more, because it is done or has failed."""
        try:
            event = self._event
            if event is not None and wait:
                event.wait()
            return event is None or event.done()
        except CudaError as error:
            logger.warning("a copy between pool and GPU failed: %s", error)
            return True


class Store(Transfer):
    """Chunks on their way from a GPU into slots of the pool."""

    def __init__(
        self,
        slots: Sequence[Reservation],
        sizes: Sequence[int],
        event: Event | None,
        keep: Any = None,
        fault: Fault | None = None,
    ) -> None:
        super().__init__(event, keep, fault)
        self._slots = tuple(slots)
        self._sizes = tuple(sizes)

    def commit(
        self, keys: Sequence[Key], *, metas: Sequence[bytes] = (), first_depth: int = 0
    ) -> list[PutResult]:
        """Waits for the last byte, then publishes slot ``i`` under ``keys[i]``.

        In pools that hosts do not keep coherent, a commit takes what the GPU has written out of
        this host's caches (unless ``payload_visibility`` is ``direct``): it must not come earlier.

        Raises what :meth:`wait` and :meth:`Reservation.commit` raise.
        """
        if len(keys) != len(self._slots) or (metas and len(metas) != len(keys)):
            raise InvalidArgumentError(f"{len(self._slots)} slots want a key (and meta) each")
        self.wait()
        return [
            slot.commit(key, meta=metas[i] if metas else b"", depth=first_depth + i, size=size)
            for i, (slot, key, size) in enumerate(zip(self._slots, keys, self._sizes, strict=True))
        ]


class Load(Transfer):
    """Chunks on their way from the pool into a GPU."""

    def __init__(
        self,
        views: Sequence[View],
        event: Event | None,
        keep: Any = None,
        fault: Fault | None = None,
    ) -> None:
        super().__init__(event, keep, fault)
        self._views = tuple(views)

    def lost(self) -> list[int]:
        """Waits for the last byte; then the positions of chunks whose lease was lost meanwhile.

        What was loaded of those may be another chunk's by now: treat them as misses, and compute
        them. All others are intact, and their views may be released. Raises what :meth:`wait`
        raises.
        """
        self.wait()
        return [i for i, view in enumerate(self._views) if not view.valid()]
