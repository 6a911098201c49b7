"""A real GPU, by torch (memory, streams, events), CuPy (kernels) and the CUDA runtime (copies)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcache_beluga.errors import InvalidArgumentError, UnsupportedError
from lmcache_beluga.gpu.chunk_table import UNROLL
from lmcache_beluga.gpu.copy_engines import Addresses, CopyEngines
from lmcache_beluga.gpu.cuda_runtime import CudaError, CudaRuntime
from lmcache_beluga.gpu.device import THREADS, Memory

_SOURCE = Path(__file__).with_name("fused_copy.cu")
#: Of which the objects are kept.
_STREAMS = 64


class CudaDevice:
    """One GPU; see :class:`~lmcache_beluga.gpu.device.Device`."""

    def __init__(self, index: int | None = None) -> None:
        """``index``: ordinal; None: torch's current device.

        Raises UnsupportedError without a CUDA device, torch or CuPy.
        """
        try:
            import cupy
            import torch
        except ImportError as error:
            raise UnsupportedError(
                f"the fused copy needs torch and CuPy ({error}): pip install torch "
                "'lmcache-beluga[gpu-cuda13]', or [gpu-cuda12]"
            ) from error
        if not torch.cuda.is_available():
            raise UnsupportedError("the fused copy needs a GPU, and torch finds no CUDA device")
        self._index = torch.cuda.current_device() if index is None else index
        if not 0 <= self._index < torch.cuda.device_count():
            raise InvalidArgumentError(f"there is no CUDA device {self._index}")
        self._torch: Any = torch
        self._cupy: Any = cupy
        self._device = torch.device("cuda", self._index)
        self._engines = CopyEngines(CudaRuntime(self._index))
        self._aside: Any = None
        self._lock = threading.Lock()

    @property
    def index(self) -> int:
        """Ordinal."""
        return self._index

    @property
    def name(self) -> str:
        return str(self._device)

    @functools.cached_property
    def processors(self) -> int:
        return int(self._torch.cuda.get_device_properties(self._device).multi_processor_count)

    @property
    def batches(self) -> bool:
        return self._engines.batches

    def stream(self, stream: object) -> int:
        if stream is None:
            return int(self._torch.cuda.current_stream(self._device).cuda_stream)
        if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
            return stream
        for name in ("cuda_stream", "ptr"):  # torch's, CuPy's
            handle = getattr(stream, name, None)
            if isinstance(handle, int):
                return handle
        protocol = getattr(stream, "__cuda_stream__", None)
        if protocol is not None:
            return int((protocol() if callable(protocol) else protocol)[1])
        raise InvalidArgumentError(f"{stream!r} is no CUDA stream")

    def words(self, values: Any, stream: int) -> Memory | None:
        torch = self._torch
        if not isinstance(values, torch.Tensor) or not values.is_cuda:
            return None
        if values.device != self._device:
            raise InvalidArgumentError(f"a tensor on {values.device}, not on {self._device}")
        if values.dtype not in (torch.int64, torch.int32, torch.uint64, torch.uint32):
            raise InvalidArgumentError(f"integers are wanted, not {values.dtype}")
        flat = values.reshape(-1) if values.is_contiguous() else None
        if flat is None or flat.element_size() < 8:
            with self._on(stream):
                flat = values.reshape(-1).to(torch.int64)
        return Memory(int(flat.data_ptr()), int(flat.numel()), flat)

    def upload(self, parts: Sequence[npt.NDArray[Any]], stream: int) -> Memory:
        torch = self._torch
        count = sum(part.size for part in parts)
        with self._on(stream):
            # Pinned, so that the host need not wait for the stream; torch keeps it until then.
            pinned = torch.empty(count, dtype=torch.int64, pin_memory=True)
            np.concatenate([part.view(np.int64) for part in parts], out=pinned.numpy())
            there = pinned.to(self._device, non_blocking=True)
        return Memory(int(there.data_ptr()), count, there)

    def fault(self) -> _Fault:
        return _Fault(self._torch.zeros(1, dtype=self._torch.int32, pin_memory=True))

    def launch(
        self, kernel: str, width: int, blocks: int, arguments: Sequence[np.generic], stream: int
    ) -> None:
        with (
            self._torch.cuda.device(self._device),
            self._failures(kernel),
            self._cupy_stream(stream),
        ):
            _kernel(kernel, width)((blocks,), (THREADS,), tuple(arguments))

    def copy_each(self, to: Addresses, source: Addresses, nbytes: int, stream: int) -> None:
        with self._torch.cuda.device(self._device):
            self._engines.copy_each(to, source, nbytes, stream)

    def copy_batch(self, to: Addresses, source: Addresses, nbytes: int, stream: int) -> None:
        with self._torch.cuda.device(self._device):
            if stream > 1:
                self._engines.copy_batch(to, source, nbytes, stream)
                return
            # The null stream is not allowed: one aside, before and after which it waits.
            with self._lock:
                if self._aside is None:
                    self._aside = self._torch.cuda.Stream(self._device)
                aside, null = self._aside, self._external(stream)
                aside.wait_stream(null)
                self._engines.copy_batch(to, source, nbytes, int(aside.cuda_stream))
                null.wait_stream(aside)

    def record(self, stream: int) -> _Event:
        with self._torch.cuda.device(self._device), self._failures("cudaEventRecord"):
            event = self._torch.cuda.Event()
            event.record(self._external(stream))
        return _Event(event)

    # Making these objects takes as long as launching a kernel; a stream is used again and again.
    # (The cache keeps this object alive; it lives as long as its process anyway.)

    @functools.lru_cache(maxsize=_STREAMS)  # noqa: B019
    def _external(self, stream: int) -> Any:
        if stream == 0:
            return self._torch.cuda.default_stream(self._device)
        return self._torch.cuda.ExternalStream(stream, device=self._device)

    @functools.lru_cache(maxsize=_STREAMS)  # noqa: B019
    def _cupy_stream(self, stream: int) -> Any:
        return self._cupy.cuda.ExternalStream(stream, self._index)

    @contextmanager
    def _on(self, stream: int) -> Iterator[None]:
        """Work of torch's goes to this stream."""
        with self._torch.cuda.stream(self._external(stream)), self._failures("torch"):
            yield

    @contextmanager
    def _failures(self, call: str) -> Iterator[None]:
        """What torch and CuPy raise, as CudaError."""
        cuda = self._cupy.cuda
        try:
            yield
        except CudaError:
            raise
        except cuda.compiler.CompileException as error:
            raise CudaError(f"compiling {call}", -1, str(error)) from error
        except (cuda.driver.CUDADriverError, cuda.runtime.CUDARuntimeError) as error:
            raise CudaError(call, int(error.status), str(error)) from error
        except RuntimeError as error:
            raise _cuda_error(call, error) from error


class _Event:
    def __init__(self, event: Any) -> None:
        self._event = event

    def done(self) -> bool:
        try:
            return bool(self._event.query())
        except RuntimeError as error:
            raise _cuda_error("cudaEventQuery", error) from error

    def wait(self) -> None:
        try:
            self._event.synchronize()
        except RuntimeError as error:
            raise _cuda_error("cudaEventSynchronize", error) from error


class _Fault:
    def __init__(self, word: Any) -> None:
        self._word = word

    @property
    def address(self) -> int:
        return int(self._word.data_ptr())

    def raised(self) -> bool:
        return bool(self._word.numpy()[0])


def _cuda_error(call: str, error: RuntimeError) -> CudaError:
    return CudaError(call, int(getattr(error, "error_code", -1)), str(error).partition("\n")[0])


@functools.cache
def _kernel(name: str, width: int) -> Any:
    """Compiled when it is first launched, for each device once; CuPy keeps it on disk, too."""
    import cupy

    options = ("-std=c++17", f"-DWIDTH={width}", f"-DUNROLL={UNROLL}")
    return cupy.RawKernel(_SOURCE.read_text(), name, options=options)
