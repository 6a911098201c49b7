"""The GPU's copy engines: one call per fragment, or one for a whole batch."""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
import numpy.typing as npt

Addresses = npt.NDArray[np.uint64]

_DEFAULT_KIND = 4  # cudaMemcpyDefault: the addresses tell the direction
_STREAM_ORDER = 1  # cudaMemcpySrcAccessOrderStream
_FIRST_VERSION = 12080
_WITHOUT_FAILED_INDEX = 13000


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """cudaMemcpyAttributes: for all copies of a batch. Locations are for managed memory only."""

    _fields_ = (
        ("source_order", ctypes.c_int),
        ("source", _Location),
        ("target", _Location),
        ("flags", ctypes.c_uint),
    )


class Calls(Protocol):
    """What is needed of :class:`~lmcache_beluga.gpu.cuda_runtime.CudaRuntime`."""

    @property
    def version(self) -> int: ...

    def call(self, name: str, *arguments: object) -> None: ...


class CopyEngines:
    """Copies that leave the GPU's processors alone."""

    def __init__(self, runtime: Calls) -> None:
        self._runtime = runtime
        self._version = runtime.version

    @property
    def batches(self) -> bool:
        """Whether this CUDA can copy a batch in one call: 12.8 and later."""
        return self._version >= _FIRST_VERSION

    def copy_each(self, to: Addresses, source: Addresses, nbytes: int, stream: int) -> None:
        """One call per fragment, all of ``nbytes``, on the stream. Raises CudaError."""
        size, kind = ctypes.c_size_t(nbytes), ctypes.c_int(_DEFAULT_KIND)
        handle = ctypes.c_void_p(stream)
        for target, origin in zip(to.tolist(), source.tolist(), strict=True):
            self._runtime.call(
                "cudaMemcpyAsync",
                ctypes.c_void_p(target),
                ctypes.c_void_p(origin),
                size,
                kind,
                handle,
            )

    def copy_batch(self, to: Addresses, source: Addresses, nbytes: int, stream: int) -> None:
        """One call for all fragments, in no particular order among themselves.

        ``stream``: any but the null stream (0), which CUDA does not allow here. Raises CudaError.
        """
        count = to.size
        sizes = np.full(count, nbytes, dtype=np.uint64)
        attributes = _Attributes(source_order=_STREAM_ORDER)
        first = ctypes.c_size_t(0)
        failed = ctypes.c_size_t(0)
        in_old_versions = [ctypes.byref(failed)] if self._version < _WITHOUT_FAILED_INDEX else []
        self._runtime.call(
            "cudaMemcpyBatchAsync",
            ctypes.c_void_p(to.ctypes.data),
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_void_p(sizes.ctypes.data),
            ctypes.c_size_t(count),
            ctypes.byref(attributes),
            ctypes.byref(first),
            ctypes.c_size_t(1),
            *in_old_versions,
            ctypes.c_void_p(stream),
        )
