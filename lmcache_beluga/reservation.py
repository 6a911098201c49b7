"""Writing a chunk where it will lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .pool_info import PutResult
from .view import View

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from . import _native

#: ``bytes``, or one of LMCache's key objects.
Key: TypeAlias = Any


class Reservation:
    """A slot of the pool to write a chunk into, before it has a key.

    A writable buffer of ``size`` bytes (``memoryview(reservation.buffer)``, ``reservation.array``).
    Nobody sees it until :meth:`commit`; after that, or after :meth:`abort`, the memory must not be
    written any more. A reservation that is dropped is aborted."""

    __slots__ = ("_native",)

    def __init__(self, native: _native.Reservation) -> None:
        self._native = native

    @property
    def size(self) -> int:
        """Bytes reserved."""
        return self._native.size

    @property
    def capacity(self) -> int:
        """Bytes of the slot, at least ``size``."""
        return self._native.capacity

    @property
    def address(self) -> int:
        """Address of the first byte in this process."""
        return self._native.address

    @property
    def slot(self) -> int:
        """Number of the slot."""
        return self._native.slot

    @property
    def done(self) -> bool:
        """Was it committed or aborted?"""
        return self._native.done

    @property
    def buffer(self) -> memoryview:
        """Writable bytes. Raises BufferError once done."""
        return memoryview(cast(Any, self._native))

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """Writable uint8 array of shape ``(size,)``. Raises InvalidArgumentError once done."""
        return self._native.array

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(cast(Any, self._native))

    def commit(
        self, key: Key, *, meta: bytes = b"", depth: int = 0, size: int | None = None
    ) -> PutResult:
        """Publishes what was written under ``key``; on return every host can find it.

        ``size`` may be less than was reserved. Whatever the result, the reservation is over. Raises
        InvalidArgumentError (done already, or a size out of range) and RecordTooLargeError.
        """
        return PutResult(self._native.commit(key, meta, depth, size, False)[0])

    def commit_view(
        self, key: Key, *, meta: bytes = b"", depth: int = 0, size: int | None = None
    ) -> tuple[PutResult, View | None]:
        """Like :meth:`commit`, and goes on reading through a leased view of what was published."""
        result, view = self._native.commit(key, meta, depth, size, True)
        return PutResult(result), None if view is None else View(view)

    def abort(self) -> None:
        """Gives the slot back. Idempotent, and harmless after a commit."""
        self._native.abort()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
