"""The keywords of ``Pool.format``, ``Pool.attach`` and ``Pool.open``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import InvalidArgumentError


@dataclass(frozen=True)
class FormatArguments:
    max_hosts: int = 1
    extent_size: int | None = None
    chunk_hint: int | None = None
    visibility: str = "coherent"
    payload_visibility: str = "flush"
    key_scheme: str = ""
    mode: int = 0o600
    force: bool = False

    def native(self) -> dict[str, Any]:
        if self.visibility not in ("coherent", "noncoherent"):
            raise InvalidArgumentError(
                f"visibility must be 'coherent' or 'noncoherent', not {self.visibility!r}"
            )
        if self.payload_visibility not in ("flush", "direct"):
            raise InvalidArgumentError(
                f"payload_visibility must be 'flush' or 'direct', not {self.payload_visibility!r}"
            )
        return {
            "max_hosts": self.max_hosts,
            "extent_size": self.extent_size or 0,
            "chunk_hint": self.chunk_hint or 0,
            "noncoherent": self.visibility == "noncoherent",
            "direct": self.payload_visibility == "direct",
            "key_scheme": self.key_scheme,
            "mode": self.mode,
            "force": self.force,
        }


@dataclass(frozen=True)
class AttachArguments:
    host_id: int = 0
    uuid: str | None = None
    key_scheme: str | None = None
    takeover: bool = False
    lease_ms: int = 10_000
    pin_timeout_ms: int = 300_000
    heartbeat_ms: int = 100
    dead_after_ms: int = 5_000
    lock_timeout_ms: int = 1_000
    open_timeout_ms: int = 30_000
    copy_threads: int = 0
    prefault: bool = False
    verify: bool = False
    control_dir: str = ""
    mode: int = 0o600

    def native(self) -> dict[str, Any]:
        options = dict(vars(self))
        for name in ("uuid", "key_scheme"):
            options[name] = options[name] or ""
        return options


FORMAT_NAMES = frozenset(FormatArguments.__dataclass_fields__)
ATTACH_NAMES = frozenset(AttachArguments.__dataclass_fields__)
