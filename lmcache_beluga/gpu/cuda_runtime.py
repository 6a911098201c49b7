"""The CUDA runtime, as far as torch does not offer it: a thin seam, which tests replace."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

#: Usable by all devices' contexts, and mapped into their address spaces (driver_types.h).
_PORTABLE, _MAPPED = 1, 2
_LIBRARY = re.compile(r"/\S*libcudart[-.\w]*\.so[.\d]*$")


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text} (error {code})")
        self.code = code


class CudaRuntime:
    """The runtime library that torch has loaded into this process.

    A failed call leaves an error behind that the next check of some innocent kernel launch would
    raise; every method here takes it away and raises CudaError itself.
    """

    def __init__(self, device: int) -> None:
        """``device``: ordinal of the GPU that registered memory is used with first. Raises OSError
        when there is none, or no CUDA runtime is loaded."""
        import torch

        if not torch.cuda.is_available():
            raise OSError("torch finds no CUDA device")
        torch.cuda.init()
        self._device = device
        # Leaves the thread on the GPU that it was found on: it may be between two copies there.
        self._on: Any = torch.cuda.device
        self._library = ctypes.CDLL(_loaded_library())
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def host_register(self, address: int, nbytes: int) -> None:
        """Pins pages and lets every GPU reach them at the same addresses. Raises CudaError."""
        with self._on(self._device):
            self.call(
                "cudaHostRegister",
                ctypes.c_void_p(address),
                ctypes.c_size_t(nbytes),
                ctypes.c_uint(_PORTABLE | _MAPPED),
            )

    def host_unregister(self, address: int) -> None:
        """Undoes ``host_register``; waits for the GPUs' work. Raises CudaError."""
        with self._on(self._device):
            self.call("cudaHostUnregister", ctypes.c_void_p(address))

    @property
    def version(self) -> int:
        """Of the library: 1000 * major + 10 * minor."""
        version = ctypes.c_int()
        self.call("cudaRuntimeGetVersion", ctypes.byref(version))
        return version.value

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function of the library that returns a cudaError_t. Raises CudaError."""
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            text = self._library.cudaGetErrorString(code).decode()
            self._library.cudaGetLastError()
            raise CudaError(name, code, text)


def _loaded_library() -> str:
    """Path of the CUDA runtime in this process: another copy would have other state."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if found := _LIBRARY.search(line):
            return found.group()
    raise OSError("no CUDA runtime (libcudart) is loaded in this process")
