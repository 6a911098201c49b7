"""What the fused copy needs of a GPU: the seam that tests replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lmcache_beluga.gpu.copy_engines import Addresses

#: Threads of each block that is launched.
THREADS = 1024


@dataclass(frozen=True)
class Memory:
    """8-byte words that the GPU can read."""

    address: int
    count: int
    keep: Any
    """Keeps them alive."""


class Event(Protocol):
    """A moment in a stream."""

    def done(self) -> bool:
        """Whether the GPU has reached it. Raises CudaError when its work failed."""
        ...

    def wait(self) -> None:
        """Waits for it. Raises CudaError when the GPU's work failed."""
        ...


class Fault(Protocol):
    """A word that kernels set when they find something wrong."""

    @property
    def address(self) -> int: ...

    def raised(self) -> bool:
        """Whether it was set; to be asked after the kernel."""
        ...


class Device(Protocol):
    """One GPU. Streams are raw handles; calls raise CudaError and leave no error behind."""

    @property
    def name(self) -> str:
        """``cuda:0``."""
        ...

    @property
    def processors(self) -> int:
        """How many thread blocks run at once, one on each."""
        ...

    @property
    def batches(self) -> bool:
        """Whether it has the batched copy."""
        ...

    def stream(self, stream: object) -> int:
        """The handle of a stream of torch's, CuPy's, or of whoever has ``__cuda_stream__``; of an
        int: itself; of None: torch's current one. Raises InvalidArgumentError for anything else."""
        ...

    def words(self, values: Any, stream: int) -> Memory | None:
        """A tensor of integers on this GPU as 64-bit words; None for what is not on a GPU.

        Raises InvalidArgumentError for one on another GPU, or of other than integers.
        """
        ...

    def upload(self, parts: Sequence[npt.NDArray[Any]], stream: int) -> Memory:
        """64-bit words to the GPU, one part after the other, in the order of the stream."""
        ...

    def fault(self) -> Fault: ...

    def launch(
        self, kernel: str, width: int, blocks: int, arguments: Sequence[np.generic], stream: int
    ) -> None:
        """Starts a kernel of fused_copy.cu with accesses of ``width`` bytes."""
        ...

    def copy_each(self, to: Addresses, source: Addresses, nbytes: int, stream: int) -> None: ...

    def copy_batch(self, to: Addresses, source: Addresses, nbytes: int, stream: int) -> None: ...

    def record(self, stream: int) -> Event: ...
