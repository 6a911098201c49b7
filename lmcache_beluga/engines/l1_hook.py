"""The one place where LMCache's server is changed: the L1 that its storage manager makes.

LMCache has an interface for L1s (``L1ManagerInterface``), but no option that names one: its
``StorageManager`` calls ``L1Manager(config)``. ``install`` puts another function under that name,
and has the L1 told of the KV layouts that engines register, in the versions in TESTED, if what is
there looks as it did when it was tested.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from lmcache.v1.distributed import l1_manager, storage_manager
from lmcache.v1.distributed.config import L1ManagerConfig
from lmcache.v1.distributed.internal_api import L1ManagerInterface
from lmcache.v1.multiprocess.engine_context import LayoutDescRegistry

from lmcache_beluga.engines.l1 import BelugaL1
from lmcache_beluga.engines.tested_shape import takes
from lmcache_beluga.errors import UnsupportedError

TESTED = ("0.5.6",)
_REGISTER = ["self", "model_name", "world_size", "layout_desc", "attn_desc", "group_layout_descs"]


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
    lacking = asked - set(dir(BelugaL1))
    made_there = storage_manager.StorageManager.__init__.__code__.co_names
    made = storage_manager.L1Manager is l1_manager.L1Manager and "L1Manager" in made_there
    register = LayoutDescRegistry.register
    if lacking or not made or not takes(register, _REGISTER):
        raise UnsupportedError(
            f"this LMCache calls itself {found}, but does not make or use its L1 as that version "
            f"does{': ' if lacking else ''}{', '.join(sorted(lacking))}"
        )
    made_l1s: list[BelugaL1] = []

    def make_one(config: L1ManagerConfig) -> BelugaL1:
        made_l1s.append(make(config))
        return made_l1s[-1]

    @functools.wraps(register)
    def told(self: LayoutDescRegistry, model: str, ranks: int, *args: Any, **kwargs: Any) -> None:
        register(self, model, ranks, *args, **kwargs)
        for l1 in made_l1s:
            l1.layouts.add(model, ranks, self.find_group_layout_descs(model, ranks) or {})

    storage_manager.L1Manager = make_one
    LayoutDescRegistry.register = told
