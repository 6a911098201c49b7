"""The rules from figures to settings, on figures that are made up."""

from __future__ import annotations

import pytest

from lmcache_beluga.characterize.advice import Recommendation, enough, recommend
from lmcache_beluga.characterize.cpu import thread_counts
from lmcache_beluga.characterize.figures import (
    ALL,
    BY_ENGINE,
    BY_KERNEL,
    COPY_IN,
    COPY_OUT,
    FROM_GPU,
    LOADS,
    TO_GPU,
    Figure,
    Figures,
    Place,
)
from lmcache_beluga.characterize.topology import Node
from lmcache_beluga.config import SETTINGS

DAX0, DAX1 = "/dev/dax0.0", "/dev/dax1.0"


def figures(*found: Figure, devices: tuple[str, ...] = (DAX0,), nodes: int = 1) -> Figures:
    places = [Place(name, "devdax", "a device", 1 << 30, 2, 2 << 20) for name in devices]
    places.append(Place("local DRAM", "dram", "memory", 1 << 30, 0, 2 << 20))
    return Figures(places, [Node(n, (n,)) for n in range(nodes)], [], list(found))


def one(found: Figures, subject: str) -> Recommendation:
    (match,) = [each for each in recommend(found) if each.subject == subject]
    return match


def copies(operation: str, curve: dict[int, float], place: str = DAX0) -> list[Figure]:
    return [
        Figure(place, "any node", operation, "GB/s", value, threads=threads)
        for threads, value in curve.items()
    ]


def test_nothing_is_said_without_figures() -> None:
    assert [each.subject for each in recommend(figures())] == ["NUMA"]
    assert recommend(Figures()) == []


def test_settings_exist_and_come_first() -> None:
    found = recommend(
        figures(
            *copies(COPY_IN, {1: 10, 2: 20}),
            *[
                Figure(place, "node 0", "load", "GB/s", value, threads=4)
                for place, value in ((DAX0, 20), (DAX1, 20), (ALL, 38))
            ],
            devices=(DAX0, DAX1),
        )
    )
    known = {setting.key: setting for setting in SETTINGS}
    settings = [each for each in found if each.setting]
    assert len(settings) == 2
    assert found[:2] == settings
    for each in settings:
        kind = known[each.setting].kind
        kind.parse(kind.split(each.value.replace(",", ":")) if kind.split else each.value)


def test_threads_enough() -> None:
    assert enough({1: 10, 2: 19.1, 4: 20, 8: 19}) == 2
    assert enough({1: 10, 2: 18.9, 4: 20}) == 4
    assert enough({1: 5}) == 1


def test_the_direction_that_needs_more_threads_decides() -> None:
    rates = [*copies(COPY_IN, {1: 20, 2: 20, 4: 20}), *copies(COPY_OUT, {1: 8, 2: 15, 4: 20})]
    advice = one(figures(*rates), "Copying threads")
    assert (advice.setting, advice.value) == ("beluga.copy_threads", "4")
    assert COPY_OUT in advice.reason and "15.0 with 2" in advice.reason


def test_a_figure_that_is_missing_is_not_zero() -> None:
    broken = Figure(DAX0, "any node", COPY_IN, "GB/s", None, threads=1)
    advice = one(figures(broken, *copies(COPY_OUT, {2: 9, 4: 9})), "Copying threads")
    assert advice.value == "2"


@pytest.mark.parametrize(("together", "setting"), [(23.0, "beluga.pool"), (21.0, None)])
def test_interleaving_must_be_worth_it(together: float, setting: str | None) -> None:
    rates = [
        Figure(place, "node 0", "ntstore", "GB/s", value, threads=4)
        for place, value in ((DAX0, 20.0), (DAX1, 12.0), (ALL, together))
    ]
    advice = one(figures(*rates, devices=(DAX0, DAX1)), "Interleaving")
    assert advice.setting == setting
    if setting:
        assert advice.value == f"{DAX0},{DAX1}"


def latency(place: str, *ns: float) -> list[Figure]:
    return [Figure(place, f"node {n}", LOADS, "ns", value) for n, value in enumerate(ns)]


def test_the_nearest_node() -> None:
    found = figures(*latency(DAX0, 400, 250), *latency("local DRAM", 90, 150), nodes=2)
    advice = one(found, "NUMA")
    assert advice.setting is None
    assert "--cpunodebind=1" in advice.value
    assert "400 ns from node 0, 250 ns from node 1" in advice.reason
    assert "as far from" in one(figures(*latency(DAX0, 250, 255), nodes=2), "NUMA").value


def blocks(operation: str, times: dict[int, float]) -> list[Figure]:
    return [
        Figure(DAX0, "node 0", operation, "ns", value, block=block)
        for block, value in times.items()
    ]


def test_writing_by_size() -> None:
    found = figures(
        *blocks("ntstore", {64: 900, 4096: 1200, 16384: 2410}),
        *blocks("store+clwb", {64: 300, 4096: 1300, 16384: 8500}),
        *blocks("store", {64: 1, 4096: 1, 16384: 1}),  # leaves them in the cache
    )
    advice = one(found, f"Writing to {DAX0}")
    assert advice.value == "store+clwb up to 64 B, ntstore from 4 KiB on"
    assert "ntstore 2410 ns, store+clwb 8500 ns" in advice.reason


def test_reading_tells_what_a_flush_costs() -> None:
    found = figures(
        *blocks("load", {64: 600, 16384: 4000}), *blocks("clflushopt+load", {64: 800, 16384: 5980})
    )
    assert "16 KiB: 4000 ns, 5980 ns" in one(found, f"Reading from {DAX0}").reason


def test_a_kernel_must_be_clearly_faster() -> None:
    rates = [
        Figure(DAX0, "gpu 0", f"{direction}, {way}", "GB/s", value, block=block)
        for direction in (TO_GPU, FROM_GPU)
        for block, way, value in (
            (65536, BY_ENGINE, 10.0),
            (65536, BY_KERNEL, 30.0),
            (1 << 20, BY_ENGINE, 50.0),
            (1 << 20, BY_KERNEL, 51.0),
        )
    ]
    advice = one(figures(*rates), f"gpu 0: {DAX0} {TO_GPU}")
    assert advice.value == "kernel up to 64 KiB, copy engine from 1 MiB on"


def test_small_pages() -> None:
    place = Place("/mnt/shm", "tmpfs", "tmpfs", 1 << 30, 0, 4096)
    found = figures(*latency("/mnt/shm", 130), *latency("local DRAM", 100))
    found.places.insert(0, place)
    assert "huge" in one(found, "Huge pages").value
    found.figures = [*latency("/mnt/shm", 101), *latency("local DRAM", 100)]
    assert all(each.subject != "Huge pages" for each in recommend(found))


def test_thread_counts() -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [1, 2]
    assert thread_counts(6) == [1, 2, 4, 6]
    assert thread_counts(96, 64) == [1, 2, 4, 8, 16, 32, 64]
