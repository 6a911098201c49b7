"""``beluga bench gpu``: how a GPU reads and writes the pool, and which way of copying is best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmcache_beluga.cli.bench_report import BenchError, Progress, Section
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.errors import UnsupportedError
from lmcache_beluga.gpu.cuda_device import CudaDevice
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime

_MIB = 1 << 20
Part = Callable[[Section, Path, bool, Progress, CudaDevice, CudaRuntime], None]


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """Measure copies by fragment size, blocks of two models, latencies, and LMCache's connector.

    A part that fails is a row that says why; the others go on.

    Args:
        folder: where the pools go; needs 2.5 GiB (quick: 1 GiB), and 3 GiB of GPU memory.

    Raises:
        BenchError: there is no GPU, or no CuPy.
    """
    try:
        device = CudaDevice()
    except UnsupportedError as error:
        raise BenchError(str(error)) from error
    require(folder, (1024 if quick else 2560) * _MIB)
    runtime = CudaRuntime(device.index)
    section = Section(f"GPU: {_name(device)}, its copies to and from the pool")
    for what, part in _parts():
        progress(what)
        inside = folder / what.replace(" ", "-")
        inside.mkdir()
        try:
            part(section, inside, quick, progress, device, runtime)
        except Exception as error:  # whatever a driver, a compiler or another package can do
            section.add_value(what, None, "", note=f"failed: {type(error).__name__}: {error}")
    return section


def _parts() -> list[tuple[str, Part]]:
    from lmcache_beluga.cli import bench_gpu_blocks, bench_gpu_copies, bench_gpu_latency

    return [
        ("copies by size", bench_gpu_copies.measure),
        ("blocks of models", bench_gpu_blocks.measure),
        ("latencies", bench_gpu_latency.measure),
        ("LMCache", _lmcache),
    ]


def _lmcache(
    section: Section,
    folder: Path,
    quick: bool,
    progress: Progress,
    device: CudaDevice,
    runtime: CudaRuntime,
) -> None:
    """LMCache's connector on slots of the pool, and on its own pinned memory: bench engine."""
    from lmcache_beluga.cli.bench_engines import run_engine

    found = run_engine(folder, quick, progress)
    for row in found.rows:
        if row.name.startswith(("store", "retrieve")):
            section.add(f"LMCache {row.name}", found.samples[row.name], row.unit, row.bar, row.note)
    section.wrong += found.wrong


def _name(device: CudaDevice) -> str:
    import torch

    properties: Any = torch.cuda.get_device_properties(device.index)
    return f"{properties.name}, {device.processors} processors"
