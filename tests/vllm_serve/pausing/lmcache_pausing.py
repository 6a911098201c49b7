"""The connector for the CPU, which stops in the midst of a store for as long as a test wants."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lmcache_on_cpu

PAUSE_S = 60


class LMCacheConnectorV1(lmcache_on_cpu.LMCacheConnectorV1):
    def copies(self, metadata: Any) -> Any:
        import cpu_kv

        class Pausing(cpu_kv.CPUKV):
            def from_gpu(self, *arguments: Any, **named: Any) -> None:
                super().from_gpu(*arguments, **named)
                _pause()

        return Pausing(metadata)


def _pause() -> None:
    """The slot is written, and not committed."""
    wanted = Path(os.environ["BELUGA_TEST_PAUSE"])
    deadline = time.monotonic() + PAUSE_S
    while wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
