"""What LMCache's HTTP API may do to the pool while a server runs: look at it, and make room."""

from __future__ import annotations

from typing import Any

from lmcache.v1.distributed.l2_adapters.reconfiguration import (
    L2ReconfigureError,
    L2ReconfigureStatus,
)

from lmcache_beluga.errors import BelugaError
from lmcache_beluga.pool import Pool
from lmcache_beluga.quantities import parse_size

OPERATIONS = ["status", "evict"]


def status(pool: Pool) -> L2ReconfigureStatus:
    """What can be done, and the pool's state."""
    return {
        "backend": "beluga",
        "supported_operations": list(OPERATIONS),
        "status": {
            "uuid": pool.uuid,
            "host_id": pool.host_id,
            "devices": [device.path for device in pool.info.devices],
            **pool.stats(),
        },
    }


def apply(pool: Pool, operation: str, payload: dict[str, object]) -> dict[str, Any]:
    """Do ``operation``: ``status``, or ``evict`` ``{"bytes": "4GiB"}`` of this host's coldest
    chunks.

    Raises L2ReconfigureError (HTTP 400) for anything else: size, devices and hosts of a pool are
    fixed when it is formatted.
    """
    try:
        if operation == "status":
            return dict(status(pool))
        if operation == "evict":
            return {"evicted_bytes": pool.evict(_bytes(payload))}
    except BelugaError as error:
        raise L2ReconfigureError(503, str(error)) from None
    raise L2ReconfigureError(
        400,
        f"a pool cannot {operation!r} while it is used: known are {', '.join(OPERATIONS)}. Its "
        "size and devices are fixed when it is formatted",
    )


def _bytes(payload: dict[str, object]) -> int:
    value = payload.get("bytes")
    try:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError
        size = parse_size(str(value))
    except ValueError:
        raise L2ReconfigureError(
            400, f"evict needs bytes, a size such as '4GiB', not {value!r}"
        ) from None
    return size
