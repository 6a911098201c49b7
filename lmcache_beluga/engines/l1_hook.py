"""The one place where LMCache's server is changed: the L1 that its storage manager makes.

LMCache has an interface for L1s (``L1ManagerInterface``), but no option that names one: its
``StorageManager`` calls ``L1Manager(config)``. ``install`` puts another function under that name,
in the versions in TESTED, if what is there looks as it did when it was tested.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from lmcache.v1.distributed import l1_manager, storage_manager
from lmcache.v1.distributed.config import L1ManagerConfig
from lmcache.v1.distributed.internal_api import L1ManagerInterface

from lmcache_beluga.engines.l1 import BelugaL1
from lmcache_beluga.errors import UnsupportedError

TESTED = ("0.5.6",)


def install(make: Callable[[L1ManagerConfig], BelugaL1]) -> None:
    """From now on, LMCache servers in this process get their L1 from ``make``.

    Raises UnsupportedError, having changed nothing, when this LMCache is not a tested one.
    """
    found = version("lmcache").partition("+")[0]
    if found not in TESTED:
        raise UnsupportedError(
            f"LMCache {found} is installed, and its server was tested with a shared L1 in "
            f"{', '.join(TESTED)} only: pip install lmcache=={TESTED[-1]}, or run 'lmcache server' "
            "with the pool as its L2 (see the README)"
        )
    asked = {name for name in vars(L1ManagerInterface) if not name.startswith("_")}
    ours = {name for name in vars(BelugaL1) if not name.startswith("_")}
    made_there = storage_manager.StorageManager.__init__.__code__.co_names
    stock = storage_manager.L1Manager is l1_manager.L1Manager and "L1Manager" in made_there
    if not stock or asked != ours:
        raise UnsupportedError(
            f"this LMCache calls itself {found}, but does not make or use its L1 as that version "
            f"does{': ' if asked ^ ours else ''}{', '.join(sorted(asked ^ ours))}"
        )
    storage_manager.L1Manager = make
