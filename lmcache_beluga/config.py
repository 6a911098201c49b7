"""Every ``beluga.*`` setting, once: name, type, default, meaning, and how it is read.

A setting ``beluga.lease`` may stand in LMCache's ``extra_config`` or in the environment as
``BELUGA_LEASE``. The environment wins, as with LMCache's own ``LMCACHE_*`` variables over its YAML
file.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lmcache_beluga import setting_kinds as kinds
from lmcache_beluga.errors import SettingError
from lmcache_beluga.setting_kinds import Kind

T = TypeVar("T")

KEY_PREFIX = "beluga."
VARIABLE_PREFIX = "BELUGA_"


def _setting(
    kind: Kind[T], default: T, meaning: str, *, default_text: str = "", of_pool: bool = True
) -> T:
    metadata = {"kind": kind, "meaning": meaning, "default_text": default_text, "of_pool": of_pool}
    # To type checkers, dataclasses.field() returns the type of its default.
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The ``beluga.*`` settings of one process; sizes in bytes, durations in milliseconds.

    Build it with ``from_extra_config`` or ``from_environ``, which parse and check; ``None`` means
    "not set". Raises SettingError when settings contradict each other.
    """

    pool: tuple[str, ...] = _setting(
        kinds.PATHS,
        (),
        "The pool: a file on tmpfs, hugetlbfs or a disk, or a device such as `/dev/dax0.0`. "
        "Several files or devices form one pool: give a list, in the order in which they were "
        "formatted.",
        default_text="required",
    )
    size: int | None = _setting(
        kinds.SIZE,
        None,
        "Size of each file when the pool is created. With it, a missing pool is created; without "
        "it, that is an error. A pool that exists keeps its size, and a device has its own.",
    )
    host_id: int = _setting(
        kinds.integer(0, 63),
        0,
        "This machine's number in the pool. All processes of one machine share it; no two "
        "machines do.",
    )
    max_hosts: int = _setting(
        kinds.integer(1, 64),
        1,
        "How many host ids the pool has room for. Fixed when the pool is created.",
    )
    extent_size: int | None = _setting(
        kinds.SIZE,
        None,
        "The unit in which hosts own the pool, and the limit of a chunk's size: a power of two, "
        "64KiB to 64GiB. Fixed when the pool is created.",
        default_text="by pool size",
    )
    chunk_hint: int | None = _setting(
        kinds.SIZE,
        None,
        "Typical size of a chunk; index and smallest slot are made for it. Larger and smaller ones "
        "fit as well. Fixed when the pool is created.",
        default_text="256KiB, more in pools over 1TiB",
    )
    visibility: str = _setting(
        kinds.choice("coherent", "noncoherent"),
        "coherent",
        "How hosts see each other's writes: `coherent` for one host, or for hardware that keeps "
        "caches of several hosts coherent; `noncoherent` for CXL 2.0 pools. Fixed when the pool "
        "is created.",
    )
    payload_visibility: str = _setting(
        kinds.choice("flush", "direct"),
        "flush",
        "In a `noncoherent` pool, who takes payload out of CPU caches: `flush`: this package, "
        "around each transfer; `direct`: nobody has to, since every host maps payload uncacheable "
        "and has DDIO off. Fixed when the pool is created.",
    )
    mode: int = _setting(
        kinds.FILE_MODE,
        0o600,
        "Permissions of the files that are created, whatever the umask. Who may write a pool can "
        "read every prompt's KV in it.",
    )
    uuid: str | None = _setting(
        kinds.UUID, None, "Refuse a pool with another uuid.", default_text="any"
    )
    key_scheme: str | None = _setting(
        kinds.TEXT,
        None,
        "Name of the way in which prompts are hashed to keys; a pool filled under another one is "
        "refused.",
        default_text="from LMCache",
    )
    takeover: bool = _setting(
        kinds.BOOLEAN,
        False,
        "Take this host id over from another machine. Only after that machine was powered off or "
        "cut off.",
    )
    lease_ms: int = _setting(
        kinds.duration(100),
        10_000,
        "How long a reader's claim on a chunk lasts unless it is renewed, which happens by itself. "
        "At most 1min.",
    )
    pin_timeout_ms: int = _setting(
        kinds.duration(1),
        300_000,
        "How long a chunk found by a lookup stays pinned when nobody fetches or unpins it.",
    )
    heartbeat_ms: int = _setting(
        kinds.duration(1),
        100,
        "How often a process shows that it lives, renews leases and looks at its peers.",
    )
    dead_after_ms: int = _setting(
        kinds.duration(1),
        5_000,
        "A host silent for this long is taken for dead, and its leases lapse. The same on all "
        "hosts.",
    )
    lock_timeout_ms: int = _setting(
        kinds.duration(1),
        1_000,
        "A put is refused, and counted, when another process holds a lock of this host for longer.",
    )
    open_timeout_ms: int = _setting(
        kinds.duration(1),
        30_000,
        "How long to wait for another process that is creating the pool or recovering this host.",
    )
    copy_threads: int = _setting(
        kinds.integer(0, 64),
        0,
        "Threads that share a large copy into or out of the pool; 0 picks by machine.",
    )
    prefault: bool = _setting(
        kinds.BOOLEAN,
        False,
        "Touch every page of the pool when it is attached, and register all of it with GPUs: slow "
        "start, no page faults later. On tmpfs this takes the whole size of the pool in memory at "
        "once.",
    )
    verify: bool = _setting(
        kinds.BOOLEAN,
        False,
        "Store a checksum of every chunk's bytes with it, and compare when one is read, for views "
        "before and after: a chunk that has changed in the pool is a miss. Costs a pass over the "
        "bytes each time. Chunks of processes that have it off are read unverified.",
    )

    control_dir: str | None = _setting(
        kinds.PATH,
        None,
        "Directory on a local tmpfs where the processes of one machine meet; all of them need the "
        "same one.",
        default_text="/dev/shm",
    )
    lmcache_hooks: bool = _setting(
        kinds.BOOLEAN,
        True,
        "Wrap a few methods of LMCache, in versions that this was tested with, so that it gathers "
        "KV in the pool instead of copying it there, moves chunks at the speed of a GPU's bus, and "
        "computes again what was lost while it was loaded.",
        of_pool=False,
    )

    def __post_init__(self) -> None:
        if self.size is not None and self.host_id >= self.max_hosts:
            raise SettingError(
                f"beluga.host_id is {self.host_id}, but a pool created with beluga.max_hosts "
                f"{self.max_hosts} has host ids 0 to {self.max_hosts - 1}: set beluga.max_hosts "
                f"to {self.host_id + 1} or more, or unset beluga.size if the pool exists"
            )
        if self.dead_after_ms < 4 * self.heartbeat_ms:
            raise SettingError(
                f"beluga.dead_after is {self.dead_after_ms} ms, less than four times "
                f"beluga.heartbeat ({self.heartbeat_ms} ms): a late heartbeat would pass for a "
                "death"
            )
        if self.lease_ms < 4 * self.heartbeat_ms:
            raise SettingError(
                f"beluga.lease is {self.lease_ms} ms, less than four times beluga.heartbeat "
                f"({self.heartbeat_ms} ms): leases would lapse before they are renewed"
            )

    @classmethod
    def from_extra_config(
        cls, extra_config: Mapping[str, Any] | None, environ: Mapping[str, str] | None = None
    ) -> Settings:
        """The settings in LMCache's ``extra_config``, overridden by those in ``environ``.

        Without ``environ`` it is the process's environment, as for ``from_environ``.
        Keys without the prefix ``beluga.`` are LMCache's or another backend's, and ignored.
        Raises SettingError for a ``beluga.*`` key that is unknown or a value that cannot be read.
        """
        values: dict[str, Any] = {}
        for key, value in (extra_config or {}).items():
            if isinstance(key, str) and key.startswith(KEY_PREFIX) and value is not None:
                setting = _BY_KEY.get(key)
                if setting is None:
                    raise SettingError(_unknown(key, list(_BY_KEY)))
                values[setting.attribute] = setting.read(value, f"{key} (extra_config)")
        values.update(_values_in(os.environ if environ is None else environ))
        return cls(**values)

    @classmethod
    def from_names(
        cls, names: Mapping[str, Any], origin: str, environ: Mapping[str, str] | None = None
    ) -> Settings:
        """The settings in ``names``, whose keys lack the prefix (``{"pool": "/dev/dax0.0"}``),
        overridden by those in ``environ``.

        ``origin`` says in error messages where ``names`` come from. With the prefix they are
        accepted as well. Raises SettingError for a name that is unknown or given in both ways, and
        for a value that cannot be read.
        """
        values: dict[str, Any] = {}
        for name, value in names.items():
            bare = name.removeprefix(KEY_PREFIX)
            setting = _BY_KEY.get(KEY_PREFIX + bare)
            if setting is None:
                raise SettingError(f"{origin}: {_unknown(bare, [s.name for s in SETTINGS])}")
            if setting.attribute in values:
                raise SettingError(f"{origin}: {bare} and {KEY_PREFIX}{bare} are one setting")
            if value is not None:
                values[setting.attribute] = setting.read(value, f"{name} ({origin})")
        values.update(_values_in(os.environ if environ is None else environ))
        return cls(**values)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings in ``environ`` (default: os.environ); an empty variable counts as not set.

        A variable ``BELUGA_*`` that is no setting is ignored (Kubernetes sets
        ``BELUGA_SERVICE_HOST`` for a service named beluga), unless it looks like a misspelt one:
        then, and for a value that cannot be read, raises SettingError.
        """
        return cls.from_extra_config(None, environ)

    def pool_arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``Pool.open``, without those that are not set.

        Raises SettingError when ``beluga.pool`` is not set.
        """
        if not self.pool:
            raise SettingError(
                "beluga.pool is not set: name the pool's file or device, such as "
                "/dev/shm/beluga.pool, in LMCache's extra_config (for an L2 adapter: as pool in "
                "adapter_params), or in the environment variable BELUGA_POOL"
            )
        arguments = {s.pool_argument: getattr(self, s.attribute) for s in SETTINGS if s.of_pool}
        return {name: value for name, value in arguments.items() if value is not None}


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings."""

    name: str
    """Without prefix: ``lease``."""
    attribute: str
    """Of Settings: ``lease_ms``."""
    kind: Kind[Any]
    default: Any
    default_text: str
    meaning: str
    """One or two sentences, in Markdown."""
    of_pool: bool
    """Whether ``Pool.open`` takes it; the others are for LMCache's engines."""

    @property
    def key(self) -> str:
        """In LMCache's ``extra_config``: ``beluga.lease``."""
        return KEY_PREFIX + self.name

    @property
    def variable(self) -> str:
        """In the environment: ``BELUGA_LEASE``."""
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def pool_argument(self) -> str:
        """The keyword of ``Pool.open`` that takes the value."""
        return "path" if self.attribute == "pool" else self.attribute

    def read(self, value: object, origin: str) -> Any:
        """``value`` parsed; raises SettingError that names ``origin`` and what is accepted."""
        try:
            return self.kind.parse(value)
        except ValueError as error:
            raise SettingError(
                f"{origin}: cannot use {value!r} ({error}); give {self.kind.accepts}"
            ) from None


def _rows() -> tuple[Setting, ...]:
    rows = []
    for field in dataclasses.fields(Settings):
        metadata = field.metadata
        kind: Kind[Any] = metadata["kind"]
        rows.append(
            Setting(
                name=field.name.removesuffix("_ms"),
                attribute=field.name,
                kind=kind,
                default=field.default,
                default_text=metadata["default_text"] or kind.show(field.default),
                meaning=metadata["meaning"],
                of_pool=metadata["of_pool"],
            )
        )
    return tuple(rows)


SETTINGS: tuple[Setting, ...] = _rows()
"""All settings, in the order in which the documentation shows them."""

_BY_KEY = {setting.key: setting for setting in SETTINGS}
_BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}


def _values_in(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, text in environ.items():
        if not variable.startswith(VARIABLE_PREFIX) or not text:
            continue
        setting = _BY_VARIABLE.get(variable)
        if setting is not None:
            value = setting.kind.split(text) if setting.kind.split else text
            values[setting.attribute] = setting.read(value, f"{variable} (environment)")
        elif _nearest(variable, list(_BY_VARIABLE), prefix=VARIABLE_PREFIX, cutoff=0.8):
            raise SettingError(_unknown(variable, list(_BY_VARIABLE)))
    return values


def _nearest(name: str, valid: list[str], *, prefix: str, cutoff: float) -> str | None:
    # The prefix, which all share, would make any two short names look alike.
    bare = {v.removeprefix(prefix).lower(): v for v in valid}
    close = difflib.get_close_matches(
        name.removeprefix(prefix).lower(), list(bare), n=1, cutoff=cutoff
    )
    return bare[close[0]] if close else None


def _unknown(name: str, valid: list[str]) -> str:
    prefix = KEY_PREFIX if name.startswith(KEY_PREFIX) else VARIABLE_PREFIX
    nearest = _nearest(name, valid, prefix=prefix, cutoff=0.0)
    return f"unknown setting {name}: did you mean {nearest}? Known are {', '.join(valid)}"
