"""The NUMA nodes of this machine and the CPUs that this process may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True)
class Node:
    """A NUMA node that has CPUs.

    Attributes:
        cpus: those that this process may use, one of each core before any core's second thread.
    """

    number: int
    cpus: tuple[int, ...]


def nodes(system: Path = SYSTEM, allowed: frozenset[int] | None = None) -> list[Node]:
    """The nodes of which this process may use CPUs, by number; one node 0 where the kernel names
    none.

    Args:
        system: where ``/sys/devices/system`` is.
        allowed: CPUs to use; by default those of this process.
    """
    usable = frozenset(os.sched_getaffinity(0)) if allowed is None else allowed
    found = []
    for folder in sorted(
        (system / "node").glob("node[0-9]*"), key=lambda path: int(path.name.removeprefix("node"))
    ):
        cpus = usable & cpu_list(_text(folder / "cpulist"))
        if cpus:
            found.append(Node(int(folder.name.removeprefix("node")), _cores_first(system, cpus)))
    return found or [Node(0, _cores_first(system, usable))]


def cpu_list(text: str) -> frozenset[int]:
    """The numbers in a list of the kernel's such as ``0-3,8,10-11``."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def cache_bytes(cpu: int, system: Path = SYSTEM) -> int:
    """Bytes of the largest cache that a CPU uses; 0 if the kernel does not tell."""
    sizes = [0]
    for size in (system / f"cpu/cpu{cpu}/cache").glob("index*/size"):
        text = _text(size).strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)


def _cores_first(system: Path, cpus: frozenset[int]) -> tuple[int, ...]:
    def turn(cpu: int) -> tuple[int, int]:
        siblings = cpu_list(_text(system / f"cpu/cpu{cpu}/topology/thread_siblings_list"))
        return len([one for one in siblings & cpus if one < cpu]), cpu

    return tuple(sorted(cpus, key=turn))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
