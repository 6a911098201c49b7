"""All backends, by name."""

from __future__ import annotations

from .base import Backend, Moved, Recompute
from .pool import InProcess, ThroughServers
from .private import Dax, Disk, LocalCPU
from .remote import Mooncake, Redis, RemoteServer, Resp
from .server import PrivateL1

BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend
    for backend in (
        Recompute,
        LocalCPU,
        InProcess,
        ThroughServers,
        PrivateL1,
        Dax,
        Disk,
        Redis,
        Resp,
        Mooncake,
        RemoteServer,
    )
}

__all__ = ["BACKENDS", "Backend", "Moved"]
