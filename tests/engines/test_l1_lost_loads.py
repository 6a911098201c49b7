"""A lease that ends while LMCache's server loads fails the load."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from l1_pair import LAYOUT, MIB, NBYTES, config, keys
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.multiprocess import object_group_transfer
from lmcache.v1.multiprocess.modules import lmcache_driven_transfer
from lmcache.v1.multiprocess.modules.lmcache_driven_transfer import LMCacheDrivenTransferModule
from lmcache.v1.multiprocess.modules.server_transfer import (
    PickleTransferStrategy,
    ShmTransferStrategy,
)
from processes import wait_until

from lmcache_beluga import Pool
from lmcache_beluga.engines.l1 import BelugaL1
from lmcache_beluga.engines.l1_lost_loads import fail_lost_loads
from lmcache_beluga.errors import BelugaError

DIRECTION = object_group_transfer.lmcache_native.TransferDirection


@pytest.fixture
def l1(pool_path: Path) -> Iterator[BelugaL1]:
    """One that holds the chunks a, b, c, and has locked them for a request."""
    pool = Pool.open(pool_path, size=4 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    made = BelugaL1(config(), pool)
    some = keys("abc")
    for _, obj in made.reserve_write(some, [False] * 3, LAYOUT, "w").values():
        assert obj is not None
        obj.raw_tensor[:] = 7
    made.finish_write(some, "w")
    assert {error for error, _ in made.reserve_read(some).values()} == {L1Error.SUCCESS}
    yield made
    made.close()


def lose(l1: BelugaL1, pool_path: Path) -> None:
    """End all leases: somebody truncates the pool, which the next heartbeat notices."""
    os.truncate(pool_path, MIB)
    wait_until(lambda: bool(l1.report_status()["pool"]["closed"]))


class Transfer:
    """Stands for LMCache's, which launches copies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, l1: BelugaL1) -> None:
        self.seen: list[Any] = []
        self.meanwhile: Callable[[], None] = lambda: None

        def stock(
            cache_context: Any,
            block_ids_gpu: Any,
            memory_objs: Any,
            object_group_id: int,
            batch_size: int,
            skip_first_n_tokens: int,
            direction: Any,
            *,
            transfer_key: str,
            block_ids_host: Any = (),
        ) -> None:
            self.seen.append((cache_context, object_group_id, batch_size, transfer_key))
            self.seen.append((block_ids_gpu, skip_first_n_tokens, block_ids_host))
            self.meanwhile()

        self.objs = [obj for _, obj in l1.unsafe_read(keys("abc")).values()]
        monkeypatch.setattr(lmcache_driven_transfer, "transfer_kv_per_object_group", stock)
        for strategy in (PickleTransferStrategy, ShmTransferStrategy):
            prepare = strategy.prepare_retrieve
            monkeypatch.setattr(strategy, "prepare_retrieve", prepare)  # is put back
        fail_lost_loads(lambda: l1.lost_leases)

    def __call__(self, direction: Any) -> None:
        lmcache_driven_transfer.transfer_kv_per_object_group(
            "cache",
            [1],
            [None, *self.objs, SimpleNamespace()],  # a skipped chunk; memory of the server's own
            object_group_id=2,
            batch_size=3,
            skip_first_n_tokens=4,
            direction=direction,
            transfer_key="key",
            block_ids_host=[[5]],
        )


def test_a_load_whose_leases_last_succeeds(monkeypatch: pytest.MonkeyPatch, l1: BelugaL1) -> None:
    transfer = Transfer(monkeypatch, l1)
    transfer(DIRECTION.H2D)
    assert transfer.seen == [("cache", 2, 3, "key"), ([1], 4, [[5]])]


def test_a_load_whose_lease_ends_fails(
    monkeypatch: pytest.MonkeyPatch, l1: BelugaL1, pool_path: Path
) -> None:
    transfer = Transfer(monkeypatch, l1)
    transfer.meanwhile = lambda: lose(l1, pool_path)
    with pytest.raises(BelugaError, match="computes the chunks again"):
        transfer(DIRECTION.H2D)
    assert len(transfer.seen) == 2, "noticed only after the copies were launched"


def test_a_store_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, l1: BelugaL1, pool_path: Path
) -> None:
    """LMCache looks at what it stored itself."""
    transfer = Transfer(monkeypatch, l1)
    transfer.meanwhile = lambda: lose(l1, pool_path)
    transfer(DIRECTION.D2H)


def test_lmcache_loads_with_what_is_wrapped() -> None:
    """By this name of its module, and it takes an exception for a load that has failed."""
    text = inspect.getsource(LMCacheDrivenTransferModule.retrieve)
    launch = text.index("transfer_kv_per_object_group(")
    assert "retrieve_succeeded = False" in text[text.index("except Exception", launch) :]


class Storage:
    """As much of LMCache's storage manager as a load in place needs."""

    def __init__(self, l1: BelugaL1) -> None:
        self._l1 = l1
        self.meanwhile: Callable[[], None] = lambda: None

    def unsafe_read(self, some: list[ObjectKey]) -> tuple[list[ObjectKey], list[Any]]:
        read = self._l1.unsafe_read(some)
        self.meanwhile()
        return [k for k, (_, obj) in read.items() if obj], [obj for _, obj in read.values() if obj]

    def finish_read_prefetched(self, some: list[ObjectKey], **_: Any) -> None:
        self._l1.finish_read(some)


@pytest.mark.parametrize("lost", [False, True])
def test_through_sockets(
    monkeypatch: pytest.MonkeyPatch, l1: BelugaL1, pool_path: Path, lost: bool
) -> None:
    Transfer(monkeypatch, l1)
    whole = [torch.full((NBYTES,), 7, dtype=torch.uint8)] * 3
    # Truncated memory cannot be copied; what was overwritten can.
    copied = [SimpleNamespace(tensor=chunk) for chunk in whole]

    class Copying(Storage):
        @contextmanager
        def read_prefetched_results(self, some: list[ObjectKey], **_: Any) -> Iterator[list[Any]]:
            assert len(self.unsafe_read(some)[1]) == 3
            if lost:
                lose(l1, pool_path)
            yield copied

    strategy = PickleTransferStrategy(Copying(l1))
    response = strategy.prepare_retrieve("key", 1, lambda _: keys("abc"))
    assert response.success is not lost
    if not lost:
        assert all(map(torch.equal, pickle.loads(response.data), whole))


@pytest.mark.parametrize("lost", [False, True])
def test_in_place(
    monkeypatch: pytest.MonkeyPatch, l1: BelugaL1, pool_path: Path, lost: bool
) -> None:
    """Engines that map the pool are told where to read."""
    Transfer(monkeypatch, l1)
    storage = Storage(l1)
    reads = []

    def once() -> None:
        reads.append(1)
        if lost and len(reads) == 1:
            lose(l1, pool_path)

    storage.meanwhile = once
    pending: dict[Any, list[ObjectKey]] = {}
    fallback = PickleTransferStrategy(storage)
    strategy = ShmTransferStrategy(
        storage, {}, pending, threading.Lock(), lambda key, instance: (instance, key), fallback
    )
    response = strategy.prepare_retrieve("key", 1, lambda _: keys("abc"))
    assert response.success is not lost
    assert list(pending.values()) == ([] if lost else [keys("abc")])
    unlocked = l1.finish_read(keys("abc"))
    assert (set(unlocked.values()) == {L1Error.SUCCESS}) is not lost, "locks are given back"


def test_another_lmcache_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def other(everything: Any) -> None: ...

    monkeypatch.setattr(lmcache_driven_transfer, "transfer_kv_per_object_group", other)
    prepare = PickleTransferStrategy.prepare_retrieve
    with caplog.at_level(logging.WARNING):
        fail_lost_loads(lambda: 0)
    assert lmcache_driven_transfer.transfer_kv_per_object_group is other
    assert PickleTransferStrategy.prepare_retrieve is prepare
    assert "not undone" in caplog.text
