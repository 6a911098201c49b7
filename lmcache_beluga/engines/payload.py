"""The bytes of any of LMCache's memory objects, as one piece of CPU memory."""

from __future__ import annotations

from lmcache.v1.memory_management import MemoryObj

Data = tuple[int, int] | memoryview
"""(address, bytes) of memory that somebody else keeps alive, or a buffer."""


def payload(obj: MemoryObj) -> tuple[Data, object]:
    """The bytes in use of ``obj``, and what must be kept alive while they are read.

    A copy is made only of what is not contiguous, or not memory of the CPU. Raises ValueError when
    the object has no bytes, such as one that was released.
    """
    size = obj.get_size()
    raw = obj.raw_tensor
    if raw is None:
        data = memoryview(obj.byte_array)
        if data.nbytes == 0:
            raise ValueError("the object to be stored was released, or is empty")
        return data, data
    raw = raw.cpu().contiguous()
    if raw.nbytes < size:
        raise ValueError(f"the object to be stored has {raw.nbytes} of its {size} bytes")
    return (raw.data_ptr(), size), raw
