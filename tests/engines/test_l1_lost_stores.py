"""What LMCache's server stores below the pool stays there only if the lease lasted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from l1_pair import LAYOUT, MIB, NBYTES, config, keys
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.mock_l2_adapter import MockL2AdapterConfig
from lmcache.v1.distributed.storage_controllers import store_controller
from lmcache.v1.distributed.storage_controllers.store_policy import DefaultStorePolicy
from lmcache.v1.distributed.storage_controllers.utils import L2AdapterDescriptor
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.platform import create_event_notifier
from processes import wait_until

from lmcache_beluga import Pool
from lmcache_beluga.engines.l1 import BelugaL1
from lmcache_beluga.engines.l1_lost_stores import take_back_lost_stores

StoreController = store_controller.StoreController
READ_TTL_S = 1
SOME = keys("abc")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreController, "_finalize_store", StoreController._finalize_store)
    take_back_lost_stores()


@pytest.fixture
def l1(pool_path: Path) -> Iterator[BelugaL1]:
    pool = Pool.open(pool_path, size=4 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    made = BelugaL1(config(read_ttl=READ_TTL_S), pool)
    yield made
    made.close()


class Adapter:
    """As much of an L2 adapter as a store needs; it takes its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._notifier = create_event_notifier()
        self._done: dict[int, L2StoreResult] = {}
        self.bytes: dict[ObjectKey, bytes] = {}
        self.stored = threading.Event()

    def get_store_event_fd(self) -> int:
        return int(self._notifier.fileno())

    def submit_store_task(self, some: list[ObjectKey], objs: list[MemoryObj]) -> int:
        def store() -> None:
            for key, obj in zip(some, objs, strict=True):
                self.bytes[key] = bytes(obj.byte_array)
            self._done[7] = L2StoreResult(True, NBYTES * len(some))
            self.stored.set()
            self._notifier.notify()

        threading.Timer(self._seconds, store).start()
        return 7

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        done, self._done = self._done, {}
        return done

    def delete(self, some: list[ObjectKey]) -> None:
        for key in some:
            del self.bytes[key]


def stored(l1: BelugaL1, adapter: Adapter) -> None:
    """Have LMCache store in the adapter what the L1 is given."""
    settings = MockL2AdapterConfig(1, 1)
    policy, descriptor = DefaultStorePolicy(), L2AdapterDescriptor(0, settings)
    controller = StoreController(l1, [adapter], [descriptor], policy)
    controller.start()
    try:
        l1.reserve_write(SOME, [False] * len(SOME), LAYOUT, "w")
        l1.finish_write(SOME, "w")
        assert adapter.stored.wait(30)
        wait_until(lambda: controller._status_in_flight_count == 0)
    finally:
        controller.stop()  # waits for what it is in the middle of


def test_a_store_whose_locks_last_stays(l1: BelugaL1, caplog: pytest.LogCaptureFixture) -> None:
    adapter = Adapter(0)
    stored(l1, adapter)
    assert set(adapter.bytes) == set(SOME)
    assert "deleted" not in caplog.text


def test_a_store_that_took_longer_than_its_locks_is_deleted(
    l1: BelugaL1, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = Adapter(1.5 * READ_TTL_S)
    stored(l1, adapter)
    assert not adapter.bytes
    assert "3 of 3 chunks changed while the L2 adapter 0 stored them" in caplog.text


def test_another_lmcache_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def other(everything: Any) -> None: ...

    monkeypatch.setattr(StoreController, "_finalize_store", other)
    with caplog.at_level(logging.WARNING):
        take_back_lost_stores()
    assert StoreController._finalize_store is other
    assert "in another way" in caplog.text
