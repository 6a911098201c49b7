"""LMCache's MemoryObj over pool memory: a leased chunk, or a slot that is being filled."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from lmcache.v1.memory_management import (
    MemoryAllocatorInterface,
    MemoryFormat,
    MemoryObj,
    MemoryObjMetadata,
)

from lmcache_beluga.engines.layout import Layout

if TYPE_CHECKING:
    from lmcache_beluga.pool import Reservation, View

Hold: TypeAlias = "View | Reservation"

# A view's array is read-only, torch has no read-only tensors and warns once per process about it.
# LMCache only reads what it retrieves; its users need not hear of it.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"\0", dtype=np.uint8))

# One lock for the counts of all objects: it is held for a few bytecodes, and a lock per object
# would cost more to make than the object.
_counts = threading.Lock()


class PoolMemoryObj(MemoryObj):  # type: ignore[misc]
    """Bytes of the pool that LMCache may use until it drops its last reference.

    Holds a View (a stored chunk, leased: read only) or a Reservation (a free slot: to be written).
    ``release`` is called once with what is held, when neither references nor pins are left; after
    that ``tensor`` is None. Counts never become negative and a release is never repeated, however
    often LMCache drops a reference: with asynchronous loading LMCache 0.5.6 drops the same one in
    ``retrieve`` and again in ``cleanup_memory_objs``.

    Tensors keep the pool's mapping alive by themselves, so that one which is used after the
    release reads stale bytes at worst.
    """

    __slots__ = ("_bounds", "_hold", "_parent", "_raw", "_release", "_tensor", "_used")

    def __init__(
        self,
        hold: Hold,
        layout: Layout,
        release: Callable[[Any], None],
        parent: MemoryAllocatorInterface,
    ) -> None:
        super().__init__(layout.metadata(hold.address))
        self._hold: Hold | None = hold
        self._bounds = layout.bounds
        self._used = layout.nbytes
        self._release = release
        self._parent = parent
        self._raw: torch.Tensor | None = None
        self._tensor: torch.Tensor | None = None

    @property
    def hold(self) -> Hold | None:
        """The View or Reservation behind the object, None once it was released."""
        return self._hold

    def swap_hold(self, hold: Hold, release: Callable[[Any], None]) -> None:
        """Keep the bytes under another right: a Reservation became a View by being committed."""
        with _counts:
            if self._hold is None or hold.address != self._hold.address:
                self._raw = self._tensor = None
            self._hold = hold
            self._release = release

    # References and pins

    def ref_count_up(self) -> None:
        with _counts:
            self.meta.ref_count += 1

    def ref_count_down(self) -> None:
        with _counts:
            meta = self.meta
            if meta.ref_count > 0:
                meta.ref_count -= 1
            hold = self._take_if_unused()
        if hold is not None:
            self._release(hold)

    def pin(self) -> bool:
        with _counts:
            self.meta.pin_count += 1
        return True

    def unpin(self) -> bool:
        with _counts:
            meta = self.meta
            if meta.pin_count > 0:
                meta.pin_count -= 1
            hold = self._take_if_unused()
        if hold is not None:
            self._release(hold)
        return True

    def _take_if_unused(self) -> Hold | None:
        meta = self.meta
        if meta.ref_count > 0 or meta.pin_count > 0:
            return None
        hold, self._hold = self._hold, None
        self._raw = self._tensor = None
        return hold

    def invalidate(self) -> None:
        """Give the bytes up now, whoever still refers to the object."""
        with _counts:
            self.meta.ref_count = self.meta.pin_count = 0
            hold = self._take_if_unused()
        if hold is not None:
            self._release(hold)

    def is_valid(self) -> bool:
        return self._hold is not None

    def get_ref_count(self) -> int:
        return int(self.meta.ref_count)

    @property
    def is_pinned(self) -> bool:
        return bool(self.meta.pin_count > 0)

    @property
    def can_evict(self) -> bool:
        return bool(self.meta.pin_count == 0 and self.meta.ref_count == 1)

    # Shape

    @property
    def metadata(self) -> MemoryObjMetadata:
        return self.meta

    def get_size(self) -> int:
        return self._used

    def get_physical_size(self) -> int:
        return int(self.meta.phy_size)

    def set_used_size(self, n: int) -> None:
        """Use only the first ``n`` bytes. Raises ValueError when there are fewer."""
        if not 0 <= n <= self.meta.phy_size:
            raise ValueError(f"{n} bytes of {self.meta.phy_size} cannot be used")
        self._used = n
        self._tensor = None

    def get_shape(self) -> torch.Size:
        return self.meta.shape

    def get_dtype(self) -> torch.dtype | None:
        return self.meta.dtype

    def get_shapes(self) -> list[torch.Size]:
        return self.meta.shapes or [self.meta.shape]

    def get_dtypes(self) -> list[torch.dtype]:
        return self.meta.dtypes or [self.meta.dtype]

    def get_memory_format(self) -> MemoryFormat:
        return self.meta.fmt

    def get_num_tokens(self) -> int:
        meta = self.meta
        return int(meta.shape[meta.fmt.token_dim()])

    # Bytes

    @property
    def raw_tensor(self) -> torch.Tensor | None:
        """All bytes, uint8 of shape [physical size]; None once released."""
        raw = self._raw
        if raw is None:
            hold = self._hold
            if hold is None:
                return None
            raw = self._raw = torch.from_numpy(hold.array)
        return raw

    @property
    def raw_data(self) -> torch.Tensor | None:
        return self.raw_tensor

    @property
    def bytes_in_use(self) -> torch.Tensor:
        """uint8 of shape [size]. Raises ValueError once released."""
        raw = self.raw_tensor
        if raw is None:
            raise ValueError("the object was released")
        return raw[: self._used]

    @property
    def tensor(self) -> torch.Tensor | None:
        """The bytes in use, as LMCache's dtype and shape; None once released.

        Of several KV groups, LMCache asks for each with ``get_tensor``; then this is bytes.
        """
        tensor = self._tensor
        if tensor is None:
            raw = self.raw_tensor
            if raw is None:
                return None
            tensor = raw[: self._used]
            if len(self._bounds) == 2 and self._used == self._bounds[1]:
                tensor = tensor.view(self.meta.dtype).view(self.meta.shape)
            self._tensor = tensor
        return tensor

    def get_tensor(self, index: int) -> torch.Tensor | None:
        """The tensor of KV group ``index``; None once released."""
        raw = self.raw_tensor
        if raw is None:
            return None
        group = raw[self._bounds[index] : self._bounds[index + 1]]
        return group.view(self.get_dtypes()[index]).view(self.get_shapes()[index])

    @property
    def byte_array(self) -> memoryview:
        """The bytes in use; empty once released."""
        raw = self.raw_tensor
        if raw is None:
            return memoryview(b"")
        return memoryview(raw.numpy())[: self._used]

    @property
    def data_ptr(self) -> int:
        """Address of the first byte; 0 once released."""
        hold = self._hold
        return 0 if hold is None else hold.address

    def parent(self) -> MemoryAllocatorInterface:
        return self._parent
