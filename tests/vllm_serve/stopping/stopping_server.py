"""``python -m lmcache_beluga`` whose LMCache server stands still in the midst of a load when a test
wants it: chunks have been looked at, and not been copied."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lmcache_beluga.cli import main
from lmcache_beluga.engines.l1 import BelugaL1

_unsafe_read = BelugaL1.unsafe_read


def _read_and_stop(self: BelugaL1, keys: Any) -> Any:
    found = _unsafe_read(self, keys)
    wanted = Path(os.environ["BELUGA_TEST_STOP"])
    if wanted.exists():
        wanted.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)
    return found


BelugaL1.unsafe_read = _read_and_stop  # type: ignore[method-assign]
main()
