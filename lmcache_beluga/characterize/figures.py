"""What is measured: one figure per place, reader, operation, number of threads and block size."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lmcache_beluga.characterize.topology import Node

LOADS = "dependent load"
COPY_IN = "copy into it"
COPY_OUT = "copy out of it"
TO_GPU = "to the GPU"
FROM_GPU = "from the GPU"
#: How a GPU copies: by its copy engine (cudaMemcpyAsync), or by a kernel that reads host memory.
BY_ENGINE, BY_KERNEL = "copy engine", "kernel"


@dataclass(frozen=True)
class Place:
    """Memory that was measured.

    Attributes:
        name: a pool device's path, or ``local DRAM``.
        kind: ``dram``, ``tmpfs``, ``hugetlbfs``, ``file`` or ``devdax``.
        what: what that is, in a sentence.
        nbytes: how much of it was used.
        node: where most of its pages are; None if unknown.
        page_bytes: of most of its pages; 0 if unknown.
    """

    name: str
    kind: str
    what: str
    nbytes: int
    node: int | None = None
    page_bytes: int = 0

    @property
    def is_pool(self) -> bool:
        """Whether it is, or could be, a pool's: not what it is compared with."""
        return self.kind != "dram"


@dataclass(frozen=True)
class Figure:
    """One number: the median of some samples.

    Attributes:
        place: name of the Place, or ``ALL`` for all devices at once.
        reader: who: ``node 0`` (its CPUs) or ``gpu 0``.
        operation: ``dependent load``, an operation of the CPU, a copy.
        unit: ``ns`` or ``GB/s``.
        value: None where it could not be measured; ``note`` says why.
        threads: on CPUs of that node.
        block: bytes that were read or written at a time; 0: all of it, one after the other.
        low, high: 10th and 90th percentile.
    """

    place: str
    reader: str
    operation: str
    unit: str
    value: float | None
    threads: int = 1
    block: int = 0
    low: float | None = None
    high: float | None = None
    note: str = ""

    @staticmethod
    def of(
        place: str,
        reader: str,
        operation: str,
        unit: str,
        samples: Sequence[float],
        *,
        threads: int = 1,
        block: int = 0,
        note: str = "",
    ) -> Figure:
        """The figure of some samples (not empty)."""
        ordered = sorted(samples)
        low = ordered[len(ordered) // 10]
        high = ordered[-1 - len(ordered) // 10]
        value = statistics.median(ordered)
        return Figure(
            place, reader, operation, unit, value, threads, block, low=low, high=high, note=note
        )


ALL = "all devices in turn"


@dataclass
class Figures:
    """All that was measured on a machine."""

    places: list[Place] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def pick(self, **wanted: Any) -> list[Figure]:
        """The figures that have a value, and these attributes."""
        return [
            one
            for one in self.figures
            if one.value is not None
            and all(getattr(one, name) == value for name, value in wanted.items())
        ]

    def value(self, **wanted: Any) -> float | None:
        """The value of the one figure with these attributes; None if there is none."""
        found = self.pick(**wanted)
        return found[0].value if found else None

    @property
    def pools(self) -> list[Place]:
        """The places that are not for comparison."""
        return [place for place in self.places if place.is_pool]

    def nearest_node(self, place: str) -> str:
        """The reader with the lowest latency among the nodes; the first where none was measured."""
        found = [
            one for one in self.pick(place=place, operation=LOADS) if one.reader.startswith("node ")
        ]
        if not found:
            return node_name(self.nodes[0])
        return min(found, key=lambda one: one.value or 0).reader

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "places": [asdict(place) for place in self.places],
            "nodes": [asdict(node) for node in self.nodes],
            "gpus": self.gpus,
            "figures": [asdict(one) for one in self.figures],
            "notes": self.notes,
        }


def node_name(node: Node) -> str:
    """How a node is called as a reader."""
    return f"node {node.number}"


def unique(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))
