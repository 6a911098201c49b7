"""The exceptions that lmcache-beluga raises.

Native errors arrive here by name (see ``ErrorKind`` in ``native/errors.hpp``). Where Python already
has a fitting built-in class, the exception is one of those too, so ``except FileNotFoundError``
works.
"""

from __future__ import annotations


class BelugaError(Exception):
    """Base of every exception of this package."""


class PoolMissingError(BelugaError, FileNotFoundError):
    """The pool's file or device does not exist."""


class NotAPoolError(BelugaError, ValueError):
    """The file or device holds something that is not a pool; it was not touched."""


class HalfFormattedError(NotAPoolError):
    """A format of this pool began and did not finish."""


class VersionMismatchError(BelugaError):
    """The pool has an on-pool format version that this build cannot read."""


class KeySchemeError(BelugaError):
    """The pool's chunks were stored under another way of hashing prompts."""


class PoolUuidError(BelugaError):
    """The pool is not the one whose uuid was configured."""


class PoolTruncatedError(BelugaError):
    """The pool's file or device is smaller than its superblock says."""


class PoolPermissionError(BelugaError, PermissionError):
    """The operating system refused access to the pool."""


class HostInUseError(BelugaError):
    """Another machine, or another container with a private /dev/shm, uses this host id."""


class PoolBusyError(BelugaError):
    """The pool is being formatted, or has live hosts where none may be."""


class NoSpaceError(BelugaError, OSError):
    """The file system of the pool has no room left."""


class ChunkTooLargeError(BelugaError, ValueError):
    """A chunk does not fit into one extent."""


class RecordTooLargeError(BelugaError, ValueError):
    """A key record with its metadata does not fit into a descriptor."""


class PoolClosedError(BelugaError):
    """The pool was closed: by its user, or because the file shrank or was formatted anew."""


class ForkedHandleError(BelugaError):
    """The handle was opened before a fork and is used in the child."""


class UnsupportedError(BelugaError):
    """This machine cannot do what the pool or a setting asks for."""


class PoolIOError(BelugaError, OSError):
    """A system call on the pool failed."""


class InvalidArgumentError(BelugaError, ValueError):
    """An argument is out of its documented range."""


class CorruptPoolError(BelugaError):
    """The superblock fails validation."""


class SettingError(BelugaError, ValueError):
    """A ``beluga.*`` setting is unknown or malformed."""
