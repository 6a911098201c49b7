"""lmcache-beluga: one KV cache in shared memory, for every engine and host on it.

``Pool`` is the cache itself; ``BelugaBackend`` and ``BelugaL2Adapter`` are LMCache's ways in, in
process and in its multiprocess mode. Names load when they are first used, so that importing this
package costs nothing: neither torch nor lmcache nor the native core.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmcache_beluga.errors import (
    BelugaError,
    ChunkTooLargeError,
    CorruptPoolError,
    ForkedHandleError,
    HalfFormattedError,
    HostInUseError,
    InvalidArgumentError,
    KeySchemeError,
    NoSpaceError,
    NotAPoolError,
    PoolBusyError,
    PoolClosedError,
    PoolIOError,
    PoolMissingError,
    PoolPermissionError,
    PoolTruncatedError,
    PoolUuidError,
    RecordTooLargeError,
    SettingError,
    UnsupportedError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from lmcache_beluga.config import Settings
    from lmcache_beluga.engines.first_tier import BelugaFirstTier
    from lmcache_beluga.engines.inprocess import BelugaBackend
    from lmcache_beluga.engines.l2_adapter import BelugaL2Adapter
    from lmcache_beluga.engines.l2_config import BelugaL2AdapterConfig
    from lmcache_beluga.pool import (
        CheckReport,
        Entry,
        HostInfo,
        Pool,
        PoolInfo,
        PutResult,
        Reservation,
        View,
    )

    __version__: str

_HOME = {
    "BelugaBackend": "engines.inprocess",
    "BelugaFirstTier": "engines.first_tier",
    "BelugaL2Adapter": "engines.l2_adapter",
    "BelugaL2AdapterConfig": "engines.l2_config",
    "CheckReport": "pool",
    "Entry": "pool",
    "HostInfo": "pool",
    "Pool": "pool",
    "PoolInfo": "pool",
    "PutResult": "pool",
    "Reservation": "pool",
    "Settings": "config",
    "View": "pool",
}

__all__ = [
    "BelugaBackend",
    "BelugaError",
    "BelugaFirstTier",
    "BelugaL2Adapter",
    "BelugaL2AdapterConfig",
    "CheckReport",
    "ChunkTooLargeError",
    "CorruptPoolError",
    "Entry",
    "ForkedHandleError",
    "HalfFormattedError",
    "HostInUseError",
    "HostInfo",
    "InvalidArgumentError",
    "KeySchemeError",
    "NoSpaceError",
    "NotAPoolError",
    "Pool",
    "PoolBusyError",
    "PoolClosedError",
    "PoolIOError",
    "PoolInfo",
    "PoolMissingError",
    "PoolPermissionError",
    "PoolTruncatedError",
    "PoolUuidError",
    "PutResult",
    "RecordTooLargeError",
    "Reservation",
    "SettingError",
    "Settings",
    "UnsupportedError",
    "VersionMismatchError",
    "View",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("lmcache-beluga")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
