"""Options of ``lmcache server`` that mean something else when the pool is its L1, or nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lmcache.cli.commands.server import ServerCommand

from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.errors import UnsupportedError

_REFUSED = {
    "l1_manager": "--l1-manager: the pool is the only L1",
    "gds_l1_path": "--gds-l1-path: the pool is the L1",
    "l1_devdax_path": "--l1-devdax-path: name the device with --pool",
    "p2p_advertise_url": "--p2p-advertise-url: servers find each other's chunks in the pool",
}

# LMCache 0.5.6 gives up a retrieve whose chunks are not in memory of its LazyMemoryAllocator.
_BLEND = (
    "--engine-type blend: CacheBlend loads from LMCache's own memory alone. Run 'lmcache server "
    "--engine-type blend' with the pool as its L2 (see the README)"
)

_EVICTS = "the pool evicts by itself, the coldest chunk of all hosts first"
_NO_MEMORY = "the pool has its memory, and that for copies is made when it is needed"
_IGNORED = {
    "eviction_policy": ("--eviction-policy", _EVICTS),
    "eviction_trigger_watermark": ("--eviction-trigger-watermark", _EVICTS),
    "eviction_ratio": ("--eviction-ratio", _EVICTS),
    "l1_use_lazy": ("--l1-use-lazy", _NO_MEMORY),
    "l1_init_size_gb": ("--l1-init-size-gb", _NO_MEMORY),
}

# What "ignored" is, besides "not given".
_MEANINGLESS = {"eviction_policy": "noop", "l1_use_lazy": False}

OVERRIDING = ("--no-l1-use-lazy", "--eviction-policy", "noop")
"""For the end of the command line: the last one counts."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """LMCache's options. Raises UnsupportedError for those that the pool cannot fulfil; says which
    do nothing, or not all that they do elsewhere."""
    parser = argparse.ArgumentParser(prog="beluga lmcache-server", add_help=False)
    ServerCommand().add_arguments(parser)
    options = parser.parse_args(list(arguments))
    for name, why in _REFUSED.items():
        if getattr(options, name, None):
            raise UnsupportedError(f"not with a shared L1: {why}")
    if options.engine_type == "blend":
        raise UnsupportedError(f"not with a shared L1: {_BLEND}")
    # A name that is set already gets no default: what is left of these was not given.
    given = parser.parse_args(list(arguments), argparse.Namespace(**dict.fromkeys(_IGNORED)))
    for name, (option, why) in _IGNORED.items():
        if getattr(given, name) not in (None, _MEANINGLESS.get(name)):
            logger.warning("%s does nothing with a shared L1: %s", option, why)
    if options.coordinator_event_reporting:
        logger.warning(
            "the coordinator is told what this server stores, but not what the pool evicts"
        )
    if options.l2_store_policy == "skip_l1":
        logger.warning(
            "--l2-store-policy skip_l1 removes chunks from the pool once they are in the L2, for "
            "the engines of all hosts"
        )
    return options
