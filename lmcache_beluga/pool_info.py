"""What a pool tells about itself and its chunks."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class PutResult(enum.IntEnum):
    """What became of a chunk that was put."""

    STORED = 0
    #: The key was present already, on whichever host; nothing was written.
    DUPLICATE = 1
    #: No room: everything is leased, the file system is full, or a lock holder is stopped.
    #: ``Pool.stats()`` counts which.
    REFUSED = 2


@dataclass(frozen=True)
class Device:
    """One file or device of a pool."""

    path: str
    size: int
    #: ``tmpfs``, ``hugetlbfs``, ``file`` or ``devdax``
    kind: str
    extents: int


@dataclass(frozen=True)
class PoolInfo:
    """A pool's geometry, fixed when it was formatted. Sizes in bytes."""

    uuid: str
    version: int
    epoch: int
    devices: tuple[Device, ...]
    extent_size: int
    extents: int
    #: Smallest slot an extent is cut into.
    min_slot: int
    max_slots: int
    buckets: int
    max_hosts: int
    #: Bytes a descriptor has for a key record and its metadata.
    record_bytes: int
    metadata_bytes: int
    visibility: str
    payload_visibility: str
    key_scheme: str
    max_lease_ms: int
    created_unix_ms: int

    @property
    def capacity(self) -> int:
        """Payload bytes of all extents."""
        return self.extent_size * self.extents


@dataclass(frozen=True)
class HostInfo:
    """One host of a pool, as :meth:`Pool.hosts` finds it."""

    id: int
    name: str
    #: ``member``, ``retired``, or ``joining``: until the others know it
    state: str
    #: It beats. False for one that has left in order, too.
    live: bool
    #: Its last process has ended in order.
    left: bool
    #: A process of this machine is attached as this host: it may be stopped.
    attached: bool
    incarnation: int
    #: As it last told, and so are ``pressure`` and ``coldest_age_ms``.
    processes: int
    #: That it owns.
    extents: int
    #: Extents that it could use and cannot have.
    pressure: int
    #: Of the chunk that it would evict next; 0: none.
    coldest_age_ms: int
    #: After so long in silence it is dead.
    dead_after_ms: int
    #: For how long it was watched without a beat; 0 for a live one. It may have been silent before.
    silent_ms: int
    counters: dict[str, int]


@dataclass(frozen=True)
class Entry:
    """One chunk, as :meth:`Pool.keys` finds it."""

    record: bytes
    meta: bytes
    size: int
    host: int
    extent: int
    slot: int
    generation: int
    #: ``ready``, or ``closing``: removed, and waiting for its leases to end
    state: str
    #: Position in its prefix; 0 comes first.
    depth: int
    leased: bool
    #: Since the newest use on any host.
    age_ms: int


@dataclass(frozen=True)
class CheckReport:
    """What :meth:`Pool.check` found."""

    #: At most 200 of them are told.
    errors: list[str]
    problems: int
    slots: int
    chunks: int
    free: int
    writing: int
    closing: int
    lane_entries: int

    @property
    def ok(self) -> bool:
        return self.problems == 0


def host_of(facts: dict[str, Any]) -> HostInfo:
    """What the native core says of a host as a HostInfo."""
    return HostInfo(**{name: facts[name] for name in HostInfo.__dataclass_fields__})


def info_of(geometry: dict[str, Any]) -> PoolInfo:
    """The native geometry as a PoolInfo."""
    fields = {name: geometry[name] for name in PoolInfo.__dataclass_fields__ if name != "devices"}
    devices = tuple(
        Device(d["path"], d["size"], d["kind"], d["extents"]) for d in geometry["devices"]
    )
    return PoolInfo(devices=devices, **fields)
