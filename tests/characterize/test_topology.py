"""NUMA nodes and CPUs, from a made-up /sys."""

from __future__ import annotations

from pathlib import Path

from lmcache_beluga.characterize.topology import Node, cache_bytes, cpu_list, nodes


def system(folder: Path) -> Path:
    """Two nodes of two cores with two threads each, and one of memory alone."""
    for node, cpus in (("node0", "0-1,4-5"), ("node1", "2-3,6-7"), ("node10", "")):
        (folder / "node" / node).mkdir(parents=True)
        (folder / "node" / node / "cpulist").write_text(cpus + "\n")
    (folder / "node" / "possible").write_text("0-10\n")
    for cpu in range(8):
        topology = folder / f"cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
        for index, size in ((0, "48K"), (3, "32768K")):
            cache = folder / f"cpu/cpu{cpu}/cache/index{index}"
            cache.mkdir(parents=True)
            (cache / "size").write_text(size + "\n")
    return folder


def test_one_thread_of_each_core_comes_first(tmp_path: Path) -> None:
    found = nodes(system(tmp_path), frozenset(range(8)))
    assert found == [Node(0, (0, 1, 4, 5)), Node(1, (2, 3, 6, 7))]


def test_cpus_that_the_process_may_not_use_are_left_out(tmp_path: Path) -> None:
    assert nodes(system(tmp_path), frozenset({4, 5})) == [Node(0, (4, 5))]


def test_a_kernel_without_nodes(tmp_path: Path) -> None:
    assert nodes(tmp_path, frozenset({3, 1})) == [Node(0, (1, 3))]


def test_lists() -> None:
    assert cpu_list("0-2,7,9-10\n") == {0, 1, 2, 7, 9, 10}
    assert cpu_list("\n") == set()


def test_the_largest_cache(tmp_path: Path) -> None:
    assert cache_bytes(0, system(tmp_path)) == 32 << 20
    assert cache_bytes(99, tmp_path) == 0
