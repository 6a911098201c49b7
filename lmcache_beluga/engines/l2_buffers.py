"""LMCache's memory objects as plain CPU memory that native threads copy from and to."""

from __future__ import annotations

import numpy as np
from lmcache.v1.memory_management import MemoryObj

from lmcache_beluga.batches import Address
from lmcache_beluga.engines.payload import payload


def source(obj: MemoryObj) -> tuple[Address, object]:
    """Where the bytes in use of ``obj`` lie, and what must be kept alive while they are read.

    Raises ValueError when there are none, such as in an object that was released.
    """
    if not obj.is_valid():
        raise ValueError("the object to be stored was released")
    data, keep = payload(obj)
    if isinstance(data, tuple):
        return data, keep
    flat = np.frombuffer(data, dtype=np.uint8)
    return (flat.ctypes.data, flat.nbytes), (keep, flat)


def target(obj: MemoryObj) -> Address:
    """Where ``obj`` is to be filled.

    Raises ValueError when it is not memory that the CPU can write in one piece.
    """
    raw = obj.raw_tensor
    size = int(obj.get_size())
    if raw is None or raw.device.type != "cpu" or not raw.is_contiguous() or raw.nbytes < size:
        raise ValueError(f"a buffer to load into is no CPU memory of {size} bytes")
    return int(raw.data_ptr()), size
