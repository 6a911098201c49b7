"""``beluga characterize``: what the memory behind a pool does here, and what to set then."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcache_beluga.cli.options import attach, host_id_option, paths_argument
from lmcache_beluga.config import Settings
from lmcache_beluga.quantities import parse_size
from lmcache_beluga.signals import terminable

if TYPE_CHECKING:
    from lmcache_beluga.characterize.advice import Recommendation
    from lmcache_beluga.characterize.figures import Figures
    from lmcache_beluga.characterize.region import Region
    from lmcache_beluga.gpu.probe import Gpu

_MIB = 1 << 20
_SECONDS, _QUICK_SECONDS = 30.0, 5.0
#: Of memory per place, by default: four times the last-level cache, within these.
_LEAST, _MOST = 128 * _MIB, 1024 * _MIB
_QUICK_MOST = 64 * _MIB
_PAGE = 2 * _MIB

EPILOG = """\b
What is measured in, by PATH:
  a pool (all of its files or devices, in order)   slots that it reserves and gives back
  a folder, or a file that does not exist yet      a file of its own, removed afterwards
  a DAX device that is no pool, --raw-device       its second half, which is overwritten
\b
Examples:
  beluga characterize                              the pool in BELUGA_POOL, else /dev/shm
  beluga characterize /dev/dax0.0 /dev/dax1.0 --json here.json --plot here.png
  beluga characterize /mnt/cxl --quick
"""


def _read_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        size = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} ({error}): give a size such as 256MiB") from None
    if not 1 * _MIB <= size <= 1 << 40:
        raise click.BadParameter("give 1MiB to 1TiB")
    return size // _MIB * _MIB


@click.command("characterize", epilog=EPILOG)
@paths_argument
@click.option("--quick", is_flag=True, help="Less memory, less time: a look, not a measurement.")
@click.option(
    "--size", callback=_read_size, metavar="SIZE", help="Memory to measure in, of each device."
)
@click.option("--no-gpu", is_flag=True, help="Leave GPUs alone.")
@click.option(
    "--raw-device",
    is_flag=True,
    help="Overwrite the second half of DAX devices that hold no pool. Their contents are lost.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Also write all figures, machine and versions to FILE.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE.png",
    help="Also draw them (needs the extra characterize).",
)
@host_id_option
def characterize(
    paths: tuple[str, ...],
    quick: bool,
    size: int | None,
    no_gpu: bool,
    raw_device: bool,
    json_file: Path | None,
    plot_file: Path | None,
    host_id: int,
) -> None:
    """Measure the memory behind a pool, next to local DRAM, and recommend settings.

    By the CPUs of every NUMA node: latency of dependent loads; load, store, non-temporal store,
    store then flush, flush then load, by block size and with 1 to all threads; copies as the pool
    makes them. By every GPU: latency and copies by size. Takes under a minute, or a little more
    for each GPU.

    No chunk of a pool is touched: it is measured in slots that are reserved, and given back. They
    take free room; a pool that has none is not measured. Engines that use the memory at the same
    time are slowed, and disturb the figures.
    """
    from lmcache_beluga.characterize.advice import recommend
    from lmcache_beluga.cli.characterize_tables import show
    from lmcache_beluga.cli.tables import stdout_console

    if plot_file is not None and find_spec("matplotlib") is None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    named = paths or Settings.from_environ().pool or ("/dev/shm",)
    load = os.getloadavg()[0]
    with terminable():
        figures = _measure(named, quick, size, no_gpu, raw_device, host_id)
    recommended = recommend(figures)
    show(stdout_console(), figures, recommended)
    if json_file is not None:
        _write_json(json_file, figures, recommended, load)
    if plot_file is not None:
        from lmcache_beluga.characterize.plot import draw

        draw(figures, plot_file)


def _measure(
    paths: tuple[str, ...],
    quick: bool,
    size: int | None,
    no_gpu: bool,
    raw_device: bool,
    host_id: int,
) -> Figures:
    from lmcache_beluga.characterize import cpu, region, topology
    from lmcache_beluga.characterize.figures import Figures

    nodes = topology.nodes()
    first = nodes[0].cpus[0]
    nbytes = size or _default_size(topology.cache_bytes(first), quick)
    figures = Figures(nodes=nodes)
    gpus, missing = ([], "") if no_gpu else _gpus()
    if missing:
        figures.notes.append(missing)
    with (
        region.dram(nbytes, first) as compare,
        _places(paths, nbytes, first, raw_device, host_id, figures) as places,
    ):
        figures.places = [one.place for one in (*places, compare)]
        _say(figures, places, nbytes)
        seconds = _QUICK_SECONDS if quick else _SECONDS
        with _progress(cpu.probe_count(places, compare, nodes), "CPUs") as done:
            figures.figures.extend(cpu.measure(places, compare, nodes, seconds, done))
        if gpus:
            _measure_gpus(figures, gpus, [*places, compare])
    return figures


def _measure_gpus(figures: Figures, gpus: list[Gpu], regions: list[Region]) -> None:
    from lmcache_beluga.gpu import probe

    for gpu in gpus:
        figures.gpus.append(f"{gpu.name}: {gpu.what}")
        with _progress(probe.step_count(regions), gpu.name) as done:
            figures.figures.extend(probe.measure(gpu, regions, done))


def _gpus() -> tuple[list[Gpu], str]:
    from lmcache_beluga.gpu.probe import find_gpus

    return find_gpus()


@contextlib.contextmanager
def _places(
    paths: tuple[str, ...],
    nbytes: int,
    cpu: int,
    raw_device: bool,
    host_id: int,
    figures: Figures,
) -> Iterator[list[Region]]:
    """Memory in every device that was named. Raises BelugaError, click.UsageError."""
    from lmcache_beluga.characterize import region

    exist = [path for path in paths if Path(path).exists() and not Path(path).is_dir()]
    with contextlib.ExitStack() as held:
        places: list[Region] = []
        if len(exist) == len(paths) and region.is_pool(paths):
            places = _pool(held, paths, nbytes, host_id, figures)
        else:
            for path in paths:
                if path not in exist:
                    places.append(held.enter_context(region.scratch_file(Path(path), nbytes, cpu)))
                elif region.is_pool([path]):
                    places += _pool(held, (path,), nbytes, host_id, figures)
                elif not region.is_character_device(Path(path)):
                    raise click.UsageError(
                        f"{path} is no pool, and its contents are somebody's: name a pool (all of "
                        "its files, in order), a folder, or a file that does not exist"
                    )
                elif not raw_device:
                    raise click.UsageError(
                        f"{path} is no pool by itself. For one of several devices name all, in "
                        "order. To overwrite the second half of what it holds: --raw-device"
                    )
                else:
                    places.append(held.enter_context(region.raw_device(Path(path), nbytes, cpu)))
        yield places


def _pool(
    held: contextlib.ExitStack,
    paths: tuple[str, ...],
    nbytes: int,
    host_id: int,
    figures: Figures,
) -> list[Region]:
    from lmcache_beluga.characterize import region

    pool = held.enter_context(attach(paths, host_id))
    places = held.enter_context(region.pool_slots(pool, nbytes))
    measured = {place.name for place in places}
    for device in pool.info.devices:
        if device.path not in measured:
            figures.notes.append(
                f"{device.path} was not measured: the pool has no free room on it, and nothing is "
                "evicted for this"
            )
    return places


def _say(figures: Figures, places: list[Region], nbytes: int) -> None:
    """Notes on what the figures are not."""
    if places and not any(one.place.kind == "devdax" for one in places):
        figures.notes.append(
            "no CXL memory was measured: all of this is local DRAM, through whichever file"
        )
    small = [one.name for one in places if one.memory.size < nbytes // 2]
    if small:
        figures.notes.append(
            f"{', '.join(small)}: a slot has no more than an extent's size here, less than asked "
            "for; stores without a flush may stay in the caches"
        )


def _default_size(cache: int, quick: bool) -> int:
    size = min(max(4 * cache, _LEAST), _MOST)
    if quick:
        size = min(size, _QUICK_MOST)
    available = size
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    return max(_PAGE, min(size, available // 8) // _PAGE * _PAGE)


@contextlib.contextmanager
def _progress(total: int, what: str) -> Iterator[Any]:
    from lmcache_beluga.cli.tables import progress

    with progress(what, total) as advance:
        yield lambda name: advance(1)


def _write_json(
    path: Path, figures: Figures, recommended: list[Recommendation], load: float
) -> None:
    from lmcache_beluga.cli.bench_report import preamble, rounded

    document = preamble(shlex.join(["beluga", *sys.argv[1:]]), load) | {
        **figures.as_json(),
        "recommendations": [asdict(one) for one in recommended],
    }
    path.write_text(json.dumps(rounded(document), indent=1) + "\n")
