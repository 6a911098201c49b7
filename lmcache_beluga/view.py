"""Reading a chunk where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from . import _native


class View:
    """A chunk under lease: read-only, zero-copy, valid until released.

    Supports the buffer protocol (``memoryview(view)``), DLPack (``torch.from_dlpack(view)``) and
    numpy (``view.array``), all 1-D uint8 of ``size`` bytes. The memory stays mapped as long as
    anything refers to it, but after :meth:`release` its bytes may become another chunk's. Ends with
    ``with``, with :meth:`release`, or when it is garbage."""

    __slots__ = ("_native",)

    def __init__(self, native: _native.View) -> None:
        self._native = native

    @property
    def native(self) -> _native.View:
        """The same without this class: for callers with so many that a wrapper each shows."""
        return self._native

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return self._native.size

    def __len__(self) -> int:
        return self._native.size

    @property
    def address(self) -> int:
        """Address of the first byte in this process."""
        return self._native.address

    @property
    def meta(self) -> bytes:
        """The metadata that was put with the chunk."""
        return self._native.meta

    @property
    def record(self) -> bytes:
        """The key's record."""
        return self._native.record

    @property
    def generation(self) -> int:
        return self._native.generation

    @property
    def slot(self) -> int:
        return self._native.slot

    @property
    def released(self) -> bool:
        return self._native.released

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """Read-only uint8 array of shape ``(size,)``. Raises InvalidArgumentError after release."""
        return self._native.array

    def valid(self) -> bool:
        """Is the chunk untouched since it was leased? Ask after the last byte was transferred.

        False after a release, when this process was stopped for longer than its lease, or when the
        pool is gone: whatever was read must then be treated as a miss. With ``verify`` the bytes
        are compared with their checksum once more."""
        return self._native.valid()

    def release(self) -> None:
        """Ends the lease. Idempotent."""
        self._native.release()

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(cast(Any, self._native))

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
