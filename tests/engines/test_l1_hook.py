"""The seam through which LMCache's server gets the shared L1: in tested versions only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lmcache.v1.distributed import internal_api, l1_manager, storage_manager

from lmcache_beluga.engines import l1_hook
from lmcache_beluga.errors import UnsupportedError


@pytest.fixture(autouse=True)
def stock() -> Iterator[None]:
    yield
    storage_manager.L1Manager = l1_manager.L1Manager


def make(config: object) -> None:
    raise AssertionError("nobody asked for an L1")


@pytest.mark.parametrize("found", ["0.5.6", "0.5.6+cu130"])
def test_installed(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(l1_hook, "version", lambda name: found)
    l1_hook.install(make)
    assert storage_manager.L1Manager is make


@pytest.mark.parametrize("found", ["0.5.5", "0.5.7", "0.6.0", "0.5.6.post1", "0.5.6rc1"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(l1_hook, "version", lambda name: found)
    with pytest.raises(UnsupportedError, match=rf"LMCache {found} .*lmcache==0\.5\.6"):
        l1_hook.install(make)
    assert storage_manager.L1Manager is l1_manager.L1Manager


def test_an_interface_that_asks_for_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        internal_api.L1ManagerInterface, "reserve_room", lambda self: None, raising=False
    )
    with pytest.raises(UnsupportedError, match="reserve_room"):
        l1_hook.install(make)
    assert storage_manager.L1Manager is l1_manager.L1Manager


def test_an_l1_that_is_made_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class StorageManager:
        def __init__(self) -> None:
            pass

    monkeypatch.setattr(storage_manager, "StorageManager", StorageManager)
    with pytest.raises(UnsupportedError, match="does not make or use its L1"):
        l1_hook.install(make)
    assert storage_manager.L1Manager is l1_manager.L1Manager
