"""Where benchmarks put their pools: a folder of shared memory that goes away whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lmcache_beluga.cli.bench_report import BenchError
from lmcache_beluga.quantities import format_size


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A folder under ``parent``, removed with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="beluga-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require(folder: Path, need: int) -> None:
    """Raise BenchError unless ``need`` bytes can be stored."""
    available = room(folder)
    if available < need:
        raise BenchError(
            f"needs {format_size(need)} of memory and room in {folder.parent}, of which there is "
            f"{format_size(available)}; --quick needs less, --dir puts the pools elsewhere"
        )


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
