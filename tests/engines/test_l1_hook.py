"""The seam through which LMCache's server gets the shared L1: in tested versions only."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from l1_pair import LAYOUT, config
from lmcache.v1.distributed import internal_api, l1_manager, storage_manager
from lmcache.v1.distributed.api import MemoryLayoutDesc
from lmcache.v1.multiprocess.engine_context import LayoutDescRegistry

from lmcache_beluga.config import Settings
from lmcache_beluga.engines import l1_hook, l1_server
from lmcache_beluga.errors import UnsupportedError

register = LayoutDescRegistry.register


@pytest.fixture(autouse=True)
def stock() -> Iterator[None]:
    yield
    storage_manager.L1Manager = l1_manager.L1Manager
    LayoutDescRegistry.register = register


def nothing_changed() -> bool:
    return (
        storage_manager.L1Manager is l1_manager.L1Manager
        and LayoutDescRegistry.register is register
    )


class L1:
    """Stands for an L1."""

    def __init__(self, config: object) -> None:
        self.config = config
        self.layouts = self
        self.added: list[tuple[str, int, dict[int, MemoryLayoutDesc]]] = []

    def add(self, model: str, ranks: int, groups: dict[int, MemoryLayoutDesc]) -> None:
        self.added.append((model, ranks, groups))


@pytest.mark.parametrize("found", ["0.5.6", "0.5.6+cu130"])
def test_installed(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(l1_hook, "version", lambda name: found)
    l1_hook.install(L1)  # type: ignore[arg-type]
    settings = config()
    l1 = storage_manager.L1Manager(settings)
    assert isinstance(l1, L1) and l1.config is settings
    registry = LayoutDescRegistry()
    registry.register("model", 2, LAYOUT)
    registry.register("model", 2, LAYOUT, group_layout_descs={0: LAYOUT, 3: LAYOUT})
    assert l1.added == [("model", 2, {0: LAYOUT}), ("model", 2, {0: LAYOUT, 3: LAYOUT})]
    assert registry.find("model", 2) is LAYOUT


@pytest.mark.parametrize("found", ["0.5.5", "0.5.7", "0.6.0", "0.5.6.post1", "0.5.6rc1"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(l1_hook, "version", lambda name: found)
    with pytest.raises(UnsupportedError, match=rf"LMCache {found} .*lmcache==0\.5\.6"):
        l1_hook.install(L1)  # type: ignore[arg-type]
    assert nothing_changed()


def test_an_interface_that_asks_for_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        internal_api.L1ManagerInterface, "reserve_room", lambda self: None, raising=False
    )
    with pytest.raises(UnsupportedError, match="reserve_room"):
        l1_hook.install(L1)  # type: ignore[arg-type]
    assert nothing_changed()


def test_an_l1_that_is_made_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class StorageManager:
        def __init__(self) -> None:
            pass

    monkeypatch.setattr(storage_manager, "StorageManager", StorageManager)
    with pytest.raises(UnsupportedError, match="does not make or use its L1"):
        l1_hook.install(L1)  # type: ignore[arg-type]
    assert nothing_changed()


def test_engines_that_register_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def register_all(self: LayoutDescRegistry, layouts: object) -> None:
        pass

    with monkeypatch.context() as changed:
        changed.setattr(LayoutDescRegistry, "register", register_all)
        with pytest.raises(UnsupportedError, match="does not make or use its L1"):
            l1_hook.install(L1)  # type: ignore[arg-type]
        assert LayoutDescRegistry.register is register_all


def test_a_server_spares_loads_the_collector_and_long_turns(
    monkeypatch: pytest.MonkeyPatch, pool: Path
) -> None:
    """Else full collections stop all requests now and then, and lookups stop loads."""
    frozen, intervals = [], [sys.getswitchinterval()]

    def lmcache(arguments: list[str]) -> None:
        storage_manager.L1Manager(config()).close()
        frozen.append(gc.get_freeze_count())
        intervals.append(sys.getswitchinterval())

    monkeypatch.setattr(l1_server, "lmcache", lmcache)
    monkeypatch.setattr(l1_server, "copy_small_blocks_as_wholes", lambda: None)
    monkeypatch.setattr(l1_server, "load_in_lanes", lambda: None)
    monkeypatch.setattr(l1_server, "fail_lost_loads", lambda lost_leases: None)
    monkeypatch.setattr(l1_server, "take_back_lost_stores", lambda: None)
    try:
        l1_server.serve(dataclasses.replace(Settings.from_environ(), pool=pool, size=16 << 20), [])
    finally:
        gc.unfreeze()
        sys.setswitchinterval(intervals[0])
    assert frozen[0] > 100_000
    assert intervals[1] < 0.1 * intervals[0] + 1e-9, "loads wait for lookups"
