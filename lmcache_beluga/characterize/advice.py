"""What the figures speak for: settings where there is one, else advice, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmcache_beluga.characterize.figures import (
    ALL,
    BY_ENGINE,
    BY_KERNEL,
    COPY_IN,
    COPY_OUT,
    FROM_GPU,
    LOADS,
    TO_GPU,
    Figures,
    Place,
    unique,
)
from lmcache_beluga.quantities import format_size

#: Within so much of the best, fewer threads are better: they leave CPUs and memory to the engine.
CLOSE = 0.95
#: Interleaving must bring so much to be worth more devices in one pool.
WORTHWHILE = 1.1
#: Nodes whose latencies differ by less are alike.
NEAR = 1.05


@dataclass(frozen=True)
class Recommendation:
    """What to do, and why.

    Attributes:
        setting: its full name, ``beluga.copy_threads``; None for advice that no setting follows.
        value: of the setting, as one writes it; or the advice in a few words.
        reason: the figures that speak for it.
    """

    subject: str
    setting: str | None
    value: str
    reason: str


def recommend(figures: Figures) -> list[Recommendation]:
    """All that the figures allow to say, settings first."""
    found = [
        *copy_threads(figures),
        *interleaving(figures),
        *numa(figures),
        *pages(figures),
        *writes(figures),
        *reads(figures),
        *gpu_copies(figures),
    ]
    return sorted(found, key=lambda one: one.setting is None)


def copy_threads(figures: Figures) -> Iterator[Recommendation]:
    """The smallest number of threads within 5 % of the best, in both directions, on all devices."""
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for operation in (COPY_IN, COPY_OUT):
        for one in figures.pick(operation=operation, unit="GB/s"):
            curves.setdefault((one.place, operation), {})[one.threads] = one.value or 0
    if not curves:
        return
    needed = {key: enough(curve) for key, curve in curves.items()}
    threads = max(needed.values())
    limiting = max(needed, key=lambda key: needed[key])
    place, operation = limiting
    curve = curves[limiting]
    best = max(curve, key=lambda count: curve[count])
    reason = f"{place}, {operation}: {_gb(curve[needed[limiting]])} GB/s with {threads}"
    if best != threads:
        reason += f", within 5 % of the best ({_gb(curve[best])} with {best})"
    less = [count for count in curve if count < threads]
    if less:
        reason += f"; {_gb(curve[max(less)])} with {max(less)}"
    yield Recommendation("Copying threads", "beluga.copy_threads", str(threads), reason)


def enough(curve: dict[int, float]) -> int:
    """The smallest number of threads whose bandwidth is within 5 % of the best (not empty)."""
    best = max(curve.values())
    return min(count for count, value in curve.items() if value >= CLOSE * best)


def interleaving(figures: Figures) -> Iterator[Recommendation]:
    """One pool of all devices, if together they move at least a tenth more than the best alone."""
    places = figures.pools
    if len(places) < 2:
        return
    gains = {}
    for operation in unique(one.operation for one in figures.pick(place=ALL)):
        together = _best(figures, ALL, operation)
        alone = max(_best(figures, place.name, operation) for place in places)
        if alone > 0:
            gains[operation] = (together, alone)
    if not gains:
        return
    shown = ", ".join(
        f"{name} {_gb(together)} GB/s against {_gb(alone)}"
        for name, (together, alone) in gains.items()
        if name in ("load", "ntstore")
    )
    names = ",".join(place.name for place in places)
    if max(together / alone for together, alone in gains.values()) >= WORTHWHILE:
        yield Recommendation(
            "Interleaving", "beluga.pool", names, f"all devices in turn against the best: {shown}"
        )
    else:
        yield Recommendation(
            "Interleaving",
            None,
            "brings no bandwidth here",
            f"all devices in turn against the best: {shown}",
        )


def numa(figures: Figures) -> Iterator[Recommendation]:
    """The node from which the pool answers fastest."""
    if len(figures.nodes) < 2:
        if figures.nodes and figures.pools:
            yield Recommendation(
                "NUMA", None, "nothing to bind", "this process may use the CPUs of one node alone"
            )
        return
    for place in figures.pools:
        latency = {
            one.reader: one.value or 0
            for one in figures.pick(place=place.name, operation=LOADS)
            if one.reader.startswith("node ")
        }
        if len(latency) < 2:
            continue
        near = min(latency, key=lambda reader: latency[reader])
        shown = ", ".join(f"{value:.0f} ns from {reader}" for reader, value in latency.items())
        if max(latency.values()) < NEAR * latency[near]:
            yield Recommendation("NUMA", None, f"{place.name} is as far from all nodes", shown)
        else:
            number = near.removeprefix("node ")
            yield Recommendation(
                "NUMA",
                None,
                f"run what uses {place.name} under numactl --cpunodebind={number}",
                f"dependent loads take {shown}",
            )


def pages(figures: Figures) -> Iterator[Recommendation]:
    """Huge pages for tmpfs, where DRAM in huge pages answers faster."""
    for place in figures.pools:
        others = [one for one in figures.places if not one.is_pool and one.page_bytes > 4096]
        if place.kind != "tmpfs" or place.page_bytes != 4096 or not others:
            continue
        reader = figures.nearest_node(place.name)
        small = figures.value(place=place.name, reader=reader, operation=LOADS)
        large = figures.value(place=others[0].name, reader=reader, operation=LOADS)
        if small and large and small > NEAR * large:
            yield Recommendation(
                "Huge pages",
                None,
                "mount the tmpfs with huge=advise",
                f"its pages have 4 KiB: {small:.0f} ns per dependent load, against {large:.0f} in "
                f"{format_size(others[0].page_bytes)} pages of local DRAM",
            )


def writes(figures: Figures) -> Iterator[Recommendation]:
    """By block size, which way of making bytes leave the caches takes the least time."""
    for place in figures.pools:
        fastest = {}
        for block, times in _block_times(figures, place).items():
            ways = {n: t for n, t in times.items() if n == "ntstore" or n.startswith("store+")}
            if len(ways) > 1:
                fastest[block] = min(ways, key=lambda name: ways[name])
        if not fastest:
            continue
        told = 16 << 10 if 16 << 10 in fastest else max(fastest)
        times = _block_times(figures, place)[told]
        shown = ", ".join(
            f"{name} {_us(value)}"
            for name, value in times.items()
            if name == "ntstore" or name.startswith("store+")
        )
        yield Recommendation(
            f"Writing to {place.name}",
            None,
            _ranges(fastest),
            f"least time until nothing is left in the caches; {format_size(told)}: {shown}. The "
            "pool writes payload with ntstore",
        )


def reads(figures: Figures) -> Iterator[Recommendation]:
    """What a flush before each read costs: the price of payload_visibility flush."""
    for place in figures.pools:
        times = _block_times(figures, place)
        blocks = [block for block in times if "load" in times[block]]
        flushing = [n for n in ("clflushopt+load", "clflush+load") if n in times.get(64, {})]
        if not blocks or not flushing:
            continue
        shown = "; ".join(
            f"{format_size(block)}: {_us(times[block]['load'])}, "
            f"{_us(times[block][flushing[0]])} with the flush"
            for block in sorted({min(blocks), 16 << 10, max(blocks)} & set(blocks))
        )
        yield Recommendation(
            f"Reading from {place.name}",
            None,
            "beluga.payload_visibility decides: direct only where payload is uncacheable",
            f"a noncoherent pool flushes ({flushing[0]}) before it reads; {shown}",
        )


def gpu_copies(figures: Figures) -> Iterator[Recommendation]:
    """By block size, whether a GPU's copy engine or a kernel moves more."""
    for reader in unique(one.reader for one in figures.pick() if one.reader.startswith("gpu ")):
        for place in figures.pools:
            for direction in (TO_GPU, FROM_GPU):
                fastest = {}
                rates: dict[int, dict[str, float]] = {}
                for way in (BY_ENGINE, BY_KERNEL):
                    for one in figures.pick(
                        place=place.name,
                        reader=reader,
                        operation=f"{direction}, {way}",
                        unit="GB/s",
                    ):
                        rates.setdefault(one.block, {})[way] = one.value or 0
                for block, ways in sorted(rates.items()):
                    if len(ways) == 2:
                        # A kernel takes processors from the model: it must be clearly faster.
                        kernel = ways[BY_KERNEL] > ways[BY_ENGINE] / CLOSE
                        fastest[block] = BY_KERNEL if kernel else BY_ENGINE
                if not fastest:
                    continue
                shown = ", ".join(
                    f"{format_size(block)} {_gb(rates[block][BY_ENGINE])} / "
                    f"{_gb(rates[block][BY_KERNEL])}"
                    for block in sorted({min(fastest), max(fastest)})
                )
                yield Recommendation(
                    f"{reader}: {place.name} {direction}",
                    None,
                    _ranges(fastest),
                    f"copy engine / kernel in GB/s: {shown}",
                )


def _block_times(figures: Figures, place: Place) -> dict[int, dict[str, float]]:
    """Nanoseconds by block size and operation, from the nearest node."""
    reader = figures.nearest_node(place.name)
    times: dict[int, dict[str, float]] = {}
    for one in figures.pick(place=place.name, reader=reader, unit="ns"):
        if one.operation != LOADS:
            times.setdefault(one.block, {})[one.operation] = one.value or 0
    return dict(sorted(times.items()))


def _best(figures: Figures, place: str, operation: str) -> float:
    found = figures.pick(place=place, operation=operation, unit="GB/s")
    return max((one.value or 0 for one in found), default=0)


def _ranges(fastest: dict[int, str]) -> str:
    """Block sizes with what is fastest for each, neighbours together."""
    parts: list[tuple[int, int, str]] = []
    for block, name in sorted(fastest.items()):
        if parts and parts[-1][2] == name:
            parts[-1] = (parts[-1][0], block, name)
        else:
            parts.append((block, block, name))
    if len(parts) == 1:
        return f"{parts[0][2]} for all sizes"
    last = len(parts) - 1
    texts = []
    for number, (first, to, name) in enumerate(parts):
        if number == 0:
            texts.append(f"{name} up to {format_size(to)}")
        elif number == last:
            texts.append(f"{name} from {format_size(first)} on")
        else:
            texts.append(f"{name} from {format_size(first)}")
    return ", ".join(texts)


def _gb(value: float) -> str:
    return f"{value:.1f}"


def _us(ns: float) -> str:
    return f"{ns:.0f} ns" if ns < 10_000 else f"{ns / 1000:.0f} µs"
