"""A stand-in for the CUDA runtime."""

from __future__ import annotations

from lmcache_beluga.gpu.cuda_runtime import CudaError


class RecordingRuntime:
    """Registers nothing, and remembers what it was asked; refuses after ``refuse`` calls."""

    def __init__(self, refuse: int = 1 << 30) -> None:
        self.registered: dict[int, int] = {}
        self.calls: list[str] = []
        self._left = refuse

    def host_register(self, address: int, nbytes: int) -> None:
        self.calls.append("register")
        if self._left == 0:
            raise CudaError("cudaHostRegister", 2, "out of memory")
        self._left -= 1
        assert address not in self.registered
        self.registered[address] = nbytes

    def host_unregister(self, address: int) -> None:
        self.calls.append("unregister")
        del self.registered[address]
