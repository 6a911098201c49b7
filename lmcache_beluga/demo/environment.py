"""The environment in which LMCache runs here: quiet, offline, with stable chunk hashes."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "LMCACHE_TRACK_USAGE": "false",  # else a thread reports over the network
    "LMCACHE_LOG_LEVEL": "WARNING",
    "LMCACHE_DISABLE_BANNER": "1",
    "PYTHONHASHSEED": "0",  # LMCache's default chunk hash differs between processes without it
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait starve those they wait for
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before Python starts in every process that runs an engine."""


_FOREIGN = ("BELUGA_", "LMCACHE_")
# Variables win over a YAML file, so those of the user's own pool or LMCache must not get in.


def prepare_environment() -> None:
    """Make the environment of this process that of `child_environment`.

    The seed of Python's hash comes too late: chunk hashes agree within this process only.
    """
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        del os.environ[name]
    # LMCache's own backends warn of much that is of no concern here, in the middle of the output.
    os.environ.update(ENVIRONMENT | {"LMCACHE_LOG_LEVEL": "CRITICAL"})


def child_environment() -> dict[str, str]:
    """The environment of a process to be started, without settings meant for other engines."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | ENVIRONMENT
