"""Where benchmarks put their pools: a folder of shared memory that goes away whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A folder under ``parent``, removed with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="beluga-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def room(folder: Path) -> int:
    """Bytes that can still be stored: what the file system has free, or memory if that is less.

    A tmpfs may well promise more than the machine has.
    """
    stat = os.statvfs(folder)
    available = stat.f_bavail * stat.f_frsize
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = min(available, int(line.split()[1]) << 10)
    return available
