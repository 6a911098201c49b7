"""Starts LMCache's own multiprocess server with the pool as its L1."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lmcache.cli.main import main as lmcache
from lmcache.v1.distributed.config import L1ManagerConfig

from lmcache_beluga.config import Settings
from lmcache_beluga.engines import l1_hook
from lmcache_beluga.engines.l1 import BelugaL1
from lmcache_beluga.engines.l1_copy_path import copy_small_blocks_as_wholes
from lmcache_beluga.engines.l1_hashing import ADVICE, server_hash_scheme
from lmcache_beluga.engines.l1_lanes import load_in_lanes
from lmcache_beluga.engines.l1_lost_loads import fail_lost_loads
from lmcache_beluga.engines.l1_lost_stores import take_back_lost_stores
from lmcache_beluga.engines.l1_options import OVERRIDING, parse
from lmcache_beluga.engines.trouble import log_as_lmcache
from lmcache_beluga.engines.turns import take_turns_quickly
from lmcache_beluga.errors import KeySchemeError, UnsupportedError
from lmcache_beluga.pool import Pool

#: LMCache gives the segments that engines map a name that begins so, whatever it is told.
SEGMENT = "lmcache_l1_pool_"
_SHM = Path("/dev/shm")
_COPIES_GB = 4.0
_NO_COPIES_GB = 1 / 1024


def serve(settings: Settings, arguments: Sequence[str]) -> None:
    """Run ``lmcache server`` with ``arguments`` until it is told to end.

    Ends the process as LMCache does: by SystemExit, with a status other than 0 if it could not
    start. Raises BelugaError when the pool cannot be its L1.
    """
    log_as_lmcache()
    options = parse(arguments)
    pool = _open(settings, options)
    try:
        more = _defaults(options, pool)
        made: list[BelugaL1] = []

        def make(config: L1ManagerConfig) -> BelugaL1:
            _spare_collector()
            l1 = BelugaL1(
                config,
                pool,
                verify=settings.verify,
                prefault=settings.prefault,
                lends="--shm-name" in more,
            )
            made.append(l1)
            return l1

        l1_hook.install(make)
        copy_small_blocks_as_wholes()
        load_in_lanes()
        take_turns_quickly()
        fail_lost_loads(lambda: sum(l1.lost_leases for l1 in made))
        take_back_lost_stores()
        lmcache(["server", *arguments, *more])
    finally:
        pool.close()


def _spare_collector() -> None:
    """Keeps Python's garbage collector from what was imported: 300,000 objects that never go, and
    that a full collection looks at all the same, for 0.2 s in which no request gets on. Lookups
    make objects enough for one every few thousand keys."""
    gc.collect()
    gc.freeze()


def _open(settings: Settings, options: argparse.Namespace) -> Pool:
    arguments: dict[str, Any] = settings.pool_arguments()
    scheme = server_hash_scheme(options.chunk_size, options.hash_algorithm)
    arguments.setdefault("key_scheme", scheme)
    try:
        return Pool.open(**arguments)
    except KeySchemeError as error:
        raise KeySchemeError(f"{error}. {ADVICE}") from None


def _defaults(options: argparse.Namespace, pool: Pool) -> list[str]:
    """What LMCache asks for, or should know, besides what it was told."""
    more = [*OVERRIDING]
    if options.l1_size_gb is None:
        more += ["--l1-size-gb", str(_COPIES_GB if torch.cuda.is_available() else _NO_COPIES_GB)]
    segment = _segment(pool)
    if options.shm_name and options.shm_name != segment:
        raise UnsupportedError(
            "not with a shared L1: --shm-name. Engines that copy by themselves (engine_driven) "
            f"map the pool, if it is one file {_SHM}/{SEGMENT}NAME and this server sees no CUDA "
            "device; otherwise they send their chunks through sockets"
        )
    if segment and options.supported_transfer_mode != "lmcache_driven":
        more += ["--shm-name", segment]
    return more


def _segment(pool: Pool) -> str:
    """The name by which engines can map the pool as LMCache's shared memory; empty if they cannot.

    Not on a machine with GPUs: there, what a GPU cannot reach is copied through other memory.
    """
    path = Path(os.path.realpath(pool.info.devices[0].path))
    fits = path.parent == _SHM and path.name.startswith(SEGMENT)
    return (
        path.name if fits and len(pool.info.devices) == 1 and not torch.cuda.is_available() else ""
    )
