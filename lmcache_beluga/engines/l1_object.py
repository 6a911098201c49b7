"""LMCache's MemoryObj for the shared L1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObj, MemoryObjMetadata

from lmcache_beluga.errors import InvalidArgumentError
from lmcache_beluga.reservation import Reservation

if TYPE_CHECKING:
    from lmcache_beluga._native import View as NativeView
    from lmcache_beluga.engines.layout import Layout


class L1Object(MemoryObj):  # type: ignore[misc]
    """A leased chunk (to be read only), or a slot to write to.

    It ends when the L1 ends it, or its lease, and its tensors are None from then on: an LMCache
    server counts locks, and references and pins change nothing here. What a lookup does not need is
    made when it is asked for: most lookups of a busy server find what others hold already, or are
    not followed by a transfer.

    Also knows where in the pool's file its bytes are: an engine that copies by itself (LMCache's
    ``engine_driven`` mode) maps the file and is told.
    """

    __slots__ = (
        "_base",
        "_l1_manager_id",
        "_layout",
        "_meta",
        "_raw",
        "_used",
        "hold",
    )

    def __init__(
        self, hold: NativeView | Reservation, layout: Layout, base: int, owner: int
    ) -> None:
        """``base``: the address at which the pool's file begins in this process. ``owner``:
        LMCache's number of the L1."""
        # Not MemoryObj's: it would set what is made later here.
        self._l1_manager_id = owner
        self.hold = hold
        self._base = base
        self._layout = layout
        self._used = layout.nbytes
        self._meta: MemoryObjMetadata | None = None
        self._raw: torch.Tensor | None = None

    def end(self) -> None:
        """Give the lease or the slot back. Idempotent."""
        if isinstance(self.hold, Reservation):
            self.hold.abort()
        else:
            self.hold.release()

    @property
    def slot(self) -> Reservation:
        """The slot that is written to. Raises InvalidArgumentError when it is none."""
        if not isinstance(self.hold, Reservation) or self.hold.done:
            raise InvalidArgumentError("the object is no slot to write to")
        return self.hold

    def becomes(self, view: NativeView) -> None:
        """What was written is a chunk now, and ``view`` the lease on it."""
        self.hold = view

    # Bytes

    @property
    def address(self) -> int:
        """Of the first byte in this process."""
        return self.hold.address

    @property
    def raw_tensor(self) -> torch.Tensor | None:
        """All bytes, uint8 of shape [size]; None once ended."""
        if not self.is_valid():
            return None
        raw = self._raw
        if raw is None:
            raw = self._raw = torch.from_numpy(self.hold.array)
        return raw

    @property
    def raw_data(self) -> torch.Tensor | None:
        return self.raw_tensor

    @property
    def tensor(self) -> torch.Tensor | None:
        """The bytes in use, as LMCache's dtype and shape; None once ended.

        Of several KV groups, LMCache asks for each with ``get_tensor``; then this is bytes.
        """
        raw = self.raw_tensor
        if raw is None:
            return None
        layout = self._layout
        if len(layout.shapes) == 1 and self._used == layout.nbytes:
            return raw.view(layout.dtypes[0]).view(layout.shapes[0])
        return raw[: self._used]

    def get_tensor(self, index: int) -> torch.Tensor | None:
        """The tensor of KV group ``index``; None once ended."""
        raw = self.raw_tensor
        if raw is None:
            return None
        layout = self._layout
        group = raw[layout.bounds[index] : layout.bounds[index + 1]]
        return group.view(layout.dtypes[index]).view(layout.shapes[index])

    @property
    def byte_array(self) -> memoryview:
        """The bytes in use; empty once ended."""
        raw = self.raw_tensor
        return memoryview(b"") if raw is None else memoryview(raw.numpy())[: self._used]

    @property
    def data_ptr(self) -> int:
        """Address of the first byte; 0 once ended."""
        return self.address if self.is_valid() else 0

    @property
    def shm_offset(self) -> int:
        """Offset of the first byte in the pool's file."""
        return self.address - self._base

    # Shape

    @property
    def meta(self) -> MemoryObjMetadata:
        """LMCache's description."""
        meta = self._meta
        if meta is None:
            meta = self._meta = self._layout.metadata(self.address)
        return meta

    @property
    def metadata(self) -> MemoryObjMetadata:
        return self.meta

    def get_size(self) -> int:
        return self._used

    def get_physical_size(self) -> int:
        return self._layout.nbytes

    def set_used_size(self, n: int) -> None:
        """Use only the first ``n`` bytes. Raises ValueError when there are fewer."""
        if not 0 <= n <= self._layout.nbytes:
            raise ValueError(f"{n} bytes of {self._layout.nbytes} cannot be used")
        self._used = n

    def get_shape(self) -> torch.Size:
        return self._layout.shapes[0]

    def get_dtype(self) -> torch.dtype:
        return self._layout.dtypes[0]

    def get_shapes(self) -> list[torch.Size]:
        return self._layout.shapes

    def get_dtypes(self) -> list[torch.dtype]:
        return self._layout.dtypes

    def get_memory_format(self) -> MemoryFormat:
        return self._layout.fmt

    def get_num_tokens(self) -> int:
        return self._layout.num_tokens

    # References

    def is_valid(self) -> bool:
        hold = self.hold
        return not (hold.done if isinstance(hold, Reservation) else hold.released)

    def invalidate(self) -> None:
        self.end()

    def ref_count_up(self) -> None:
        pass

    def ref_count_down(self) -> None:
        pass

    def get_ref_count(self) -> int:
        return 1

    def pin(self) -> bool:
        return True

    def unpin(self) -> bool:
        return True

    @property
    def is_pinned(self) -> bool:
        return False

    @property
    def can_evict(self) -> bool:
        return False

    def parent(self) -> None:
        """None: no allocator of LMCache's made it."""
        return
