"""The L2 adapter: what LMCache's server relies on beyond storing and loading."""

from __future__ import annotations

import gc
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from l2_harness import (
    DTYPE,
    SHAPE,
    SIZE,
    create,
    key,
    load,
    lock,
    memory,
    payload,
    spec,
    store,
    wait,
)
from lmcache.v1.distributed.internal_api import L2AdapterListener
from lmcache.v1.distributed.l2_adapters import L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.reconfiguration import (
    L2DeviceOwner,
    L2ReconfigurableAdapter,
    L2ReconfigureError,
)
from processes import Child, wait_until

from lmcache_beluga import Pool
from lmcache_beluga.engines import l2_underway
from lmcache_beluga.engines.prefix_depths import first_row

Start = Callable[..., L2AdapterInterface]
KEYS = [key(number) for number in range(8)]


@pytest.fixture
def start(pool: Path) -> Iterator[Start]:
    """Makes adapters on the test's pool; keywords are adapter_params."""
    adapters: list[L2AdapterInterface] = []

    def start(**params: Any) -> L2AdapterInterface:
        adapters.append(create(spec(pool, **params)))
        return adapters[-1]

    yield start
    for adapter in adapters:
        adapter.close()


def filled(adapter: L2AdapterInterface, numbers: range = range(8)) -> L2AdapterInterface:
    assert store(adapter, [key(n) for n in numbers], [payload(n) for n in numbers]).is_successful()
    return adapter


def readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


# ---- events and results


def test_every_kind_has_a_descriptor_of_its_own(start: Start) -> None:
    adapters = [start(), start()]
    fds = [
        fd
        for a in adapters
        for fd in (
            a.get_store_event_fd(),
            a.get_lookup_and_lock_event_fd(),
            a.get_load_event_fd(),
        )
    ]
    assert len(set(fds)) == 6
    filled(adapters[0])
    lock(adapters[0], KEYS)
    assert not any(map(readable, fds)), "what was consumed is not signalled again"
    task = adapters[0].submit_load_task(KEYS, [memory() for _ in KEYS])
    wait(fds[2])
    assert adapters[0].query_load_result(task).popcount() == len(KEYS)
    assert [readable(fd) for fd in fds] == [False] * 6


def test_the_result_of_a_store_counts_what_was_new(start: Start) -> None:
    adapter = start()
    assert store(adapter, KEYS[:2], [payload(0), payload(1)]).bytes_transferred() == 2 * SIZE
    again = store(adapter, KEYS[:3], [payload(n) for n in range(3)])
    assert again.is_successful() and again.bytes_transferred() == SIZE


def test_tasks_that_nobody_asks_for_are_forgotten(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(l2_underway, "MOST", 8)
    adapter = filled(start())
    for _ in range(200):
        task = adapter.submit_load_task(KEYS[:1], [memory()])
        wait(adapter.get_load_event_fd())
    assert adapter.query_load_result(task).test(0), "the last one is still known"
    gc.collect()
    kept = [o for o in gc.get_objects() if type(o).__name__ == "Loading"]
    assert len(kept) <= 16


# ---- buffers and layouts


def test_a_load_fills_the_buffer_in_place_and_nothing_else(start: Start) -> None:
    adapter = filled(start())
    arena = torch.full((5 * SIZE,), 0x5A, dtype=torch.uint8)
    objects = [memory(), memory()]
    for place, obj in zip((1, 3), objects, strict=True):
        obj.raw_data = arena[place * SIZE : (place + 1) * SIZE]
    assert load(adapter, [KEYS[1], KEYS[3]], objects) == [True, True]
    parts = [bytes(arena[at : at + SIZE].numpy()) for at in range(0, 5 * SIZE, SIZE)]
    untouched = b"\x5a" * SIZE
    assert parts == [untouched, payload(1), untouched, payload(3), untouched]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (SHAPE, torch.float16),
        (torch.Size([2, 2, 128, 32]), DTYPE),
        (torch.Size([SIZE]), torch.uint8),
        (torch.Size([2, 2, 64, 128]), DTYPE),
        (torch.Size([2, 1, 64, 64]), DTYPE),
    ],
)
def test_a_chunk_of_another_layout_is_a_miss(
    start: Start, shape: torch.Size, dtype: torch.dtype
) -> None:
    """ObjectKeys do not name a dtype: two servers may mean other bytes by one key."""
    adapter = filled(start())
    size = shape.numel() * dtype.itemsize
    other = memory(b"\x5a" * size, shape, dtype)
    assert load(adapter, KEYS[:2], [other, memory()]) == [False, True]
    assert bytes(other.byte_array) == b"\x5a" * size


def test_a_serialized_chunk_may_be_smaller_than_its_buffer(start: Start) -> None:
    """LMCache's serializers are given buffers of the worst case, when storing and when loading."""
    adapter = start()
    flat = torch.Size([SIZE])
    narrow = memory(payload(1), flat, torch.uint8)
    narrow.set_used_size(1000)
    task = adapter.submit_store_task(KEYS[:1], [narrow])
    wait(adapter.get_store_event_fd())
    assert adapter.pop_completed_store_tasks()[task].bytes_transferred() == 1000
    buffer = memory(b"\x5a" * SIZE, flat, torch.uint8)
    assert load(adapter, KEYS[:1], [buffer]) == [True]
    assert bytes(buffer.byte_array) == payload(1)[:1000] + b"\x5a" * (SIZE - 1000)


def test_objects_that_cannot_be_used(start: Start) -> None:
    """A released object fails its store; one that cannot be filled is a miss among hits."""
    adapter = filled(start())
    released = memory(payload(9))
    released.invalidate()
    assert not adapter_store(adapter, [key(9), key(10)], [released, memory(payload(10))])
    assert lock(adapter, [key(9), key(10)]) == [False, False]
    objects = [memory() for _ in range(3)]
    objects[1].invalidate()
    assert load(adapter, KEYS[:3], objects) == [True, False, True]
    assert bytes(objects[2].byte_array) == payload(2)


def adapter_store(adapter: L2AdapterInterface, keys: list[Any], objects: list[Any]) -> bool:
    task = adapter.submit_store_task(keys, objects)
    wait(adapter.get_store_event_fd())
    return bool(adapter.pop_completed_store_tasks()[task].is_successful())


def test_what_is_no_key_is_a_miss(start: Start) -> None:
    adapter = filled(start())
    strange: Any = [KEYS[0], "no key"]
    assert lock(adapter, strange) == [False, False]
    assert load(adapter, strange, [memory(), memory()]) == [False, False]
    assert not store(adapter, strange, [payload(0), payload(1)]).is_successful()
    adapter.submit_unlock(strange)
    adapter.delete(strange)


# ---- locks and deletion


def test_what_is_locked_is_not_deleted(start: Start) -> None:
    """LMCache's eviction may ask for it; loads that were promised go first."""
    adapter = filled(start())
    assert lock(adapter, KEYS[:2]) == [True, True]
    adapter.delete(KEYS)
    assert load(adapter, KEYS[:3], [memory() for _ in range(3)]) == [True, True, False]
    adapter.submit_unlock(KEYS[:2])
    adapter.delete(KEYS)
    assert lock(adapter, KEYS) == [False] * len(KEYS)


def test_locks_lapse(start: Start) -> None:
    """A server that is killed, or forgets to unlock, holds nothing for ever."""
    adapter = filled(start(pin_timeout="200ms", heartbeat="20ms"))
    lock(adapter, KEYS)
    assert adapter.report_status()["locked"] == len(KEYS)
    wait_until(lambda: adapter.report_status()["locked"] == 0)
    adapter.submit_unlock(KEYS)


# ---- what LMCache is told


class Heard(L2AdapterListener):
    def __init__(self) -> None:
        self.events: list[tuple[str, list[Any]]] = []

    def on_l2_keys_stored(self, keys: list[Any], sizes: list[int]) -> None:
        assert sizes == [SIZE] * len(keys)
        self.events.append(("stored", keys))

    def on_l2_keys_accessed(self, keys: list[Any]) -> None:
        self.events.append(("accessed", keys))

    def on_l2_keys_deleted(self, keys: list[Any]) -> None:
        self.events.append(("deleted", keys))


def test_listeners_hear_of_what_happened(start: Start) -> None:
    adapter = start()
    heard = Heard()
    adapter.register_listener(heard)
    filled(adapter, range(2))
    load(adapter, KEYS[:3], [memory() for _ in range(3)])
    adapter.delete(KEYS[1:3])
    assert heard.events == [
        ("stored", KEYS[:2]),
        ("accessed", KEYS[:2]),
        ("deleted", KEYS[1:2]),
    ]


def test_usage_by_salt_is_that_of_the_pool(start: Start) -> None:
    """Of all servers: a quota that each of them counted for itself would be several quotas."""
    first, second = start(), start()
    store(first, [key(1, "alice"), key(2, "alice"), key(3)], [payload(n) for n in range(3)])
    store(second, [key(1, "bob")], [payload(4)])
    wanted = {"alice": 2 * SIZE, "bob": SIZE, "": SIZE}
    wait_until(lambda: dict(first.get_usage().bytes_by_cache_salt) == wanted)
    usage = first.get_usage()
    assert usage.total_bytes_used == 4 * SIZE
    assert 0 < usage.usage_fraction < 1
    assert first.supports_global_eviction
    first.delete([key(1, "alice")])
    assert dict(first.get_usage().bytes_by_cache_salt) == {**wanted, "alice": SIZE}


def test_keys_are_listed_in_pages(start: Start, pool: Path) -> None:
    adapter = filled(start(), range(30))
    with Pool.attach(pool) as others:
        others.put(b"somebody else's record", b"x" * 100)
    found: list[Any] = []
    cursor = None
    for _ in range(40):
        page = adapter.list_l2_keys(model_name="test-model", page_size=7, cursor=cursor)
        assert len(page.entries) <= 7
        found += page.entries
        cursor = page.next_page_token
        if cursor is None:
            break
    assert {entry.key.to_object_key() for entry in found} == {key(n) for n in range(30)}
    assert {entry.size_bytes for entry in found} == {SIZE}
    assert adapter.list_l2_keys(model_name="another").entries == ()
    for bad in ({"page_size": 0}, {"cursor": "x"}, {"cursor": "-1"}, {"cursor": "9" * 30}):
        with pytest.raises(ValueError):
            adapter.list_l2_keys(**bad)


def test_status(start: Start, pool: Path) -> None:
    adapter = filled(start())
    status = adapter.report_status()
    assert status["is_healthy"] and status["stored_object_count"] == 8
    assert (status["pool"], status["host_id"], status["tasks"]) == ([str(pool)], 0, 0)
    adapter.close()
    assert not adapter.report_status()["is_healthy"]


def test_reconfiguration(start: Start, pool: Path) -> None:
    adapter = filled(start())
    assert isinstance(adapter, L2ReconfigurableAdapter) and isinstance(adapter, L2DeviceOwner)
    status = adapter.reconfigure_status()
    assert status["supported_operations"] == ["status", "evict"]
    assert status["status"]["chunks"] == 8

    def reconfigure(operation: str, **payload: object) -> dict[str, Any]:
        return adapter.reconfigure(operation, payload, device_owners=lambda path: [])

    assert reconfigure("evict", bytes="1GiB") == {"evicted_bytes": 8 * SIZE}
    assert reconfigure("status")["status"]["chunks"] == 0
    for operation, wrong in (("resize", {}), ("evict", {}), ("evict", {"bytes": "lots"})):
        with pytest.raises(L2ReconfigureError) as caught:
            reconfigure(operation, **wrong)
        assert caught.value.status_code == 400
    alias = pool.parent / "alias"
    os.link(pool, alias)
    assert adapter.owns_device(str(pool)) and adapter.owns_device(str(alias))
    assert not adapter.owns_device("/dev/null") and not adapter.owns_device("/nowhere")


def test_first_row() -> None:
    """A lookup for four ranks and two groups: the prompt's depths are those of its first row."""
    rows = [(rank, group) for group in range(2) for rank in range(4)]
    keys = [key(n, rank=rank, group=group) for rank, group in rows for n in range(5)]
    assert list(first_row(keys)) == [key(n) for n in range(5)]
    assert list(first_row(keys[:5])) == keys[:5]
    assert list(first_row([])) == []


# ---- faults


def test_a_pool_that_goes_away(start: Start, pool: Path) -> None:
    """Truncated under a server: misses and failed stores, no exception, and it says so."""
    adapter = filled(start(heartbeat="20ms"))
    os.truncate(pool, 4096)
    wait_until(lambda: not adapter.report_status()["is_healthy"])
    assert lock(adapter, KEYS) == [False] * 8
    assert load(adapter, KEYS, [memory() for _ in KEYS]) == [False] * 8
    assert not store(adapter, [key(99)], [payload(99)]).is_successful()
    assert adapter.get_usage().total_bytes_used == 0
    adapter.submit_unlock(KEYS)
    adapter.delete(KEYS)


def test_a_pool_that_is_all_locked(start: Start) -> None:
    """A store of which a chunk was refused has failed; the adapter goes on."""
    adapter = start(size="4MiB", extent_size="256KiB")
    results = []
    for number in range(256):
        results.append(store(adapter, [key(number)], [payload(number)]))
        assert lock(adapter, [key(number)]) == [results[-1].is_successful()]
    assert results[0].bytes_transferred() == SIZE
    assert not results[-1].is_successful() and results[-1].bytes_transferred() == 0
    assert adapter.report_status()["is_healthy"]
    locked = [key(number) for number in range(256) if results[number].is_successful()]
    again = store(adapter, [locked[0], key(999)], [payload(0), payload(999)])
    assert not again.is_successful(), "one of two"
    adapter.submit_unlock(locked)
    assert store(adapter, [key(999)], [payload(999)]).is_successful()


def test_close_during_loads(start: Start) -> None:
    """After close no byte of any buffer changes, and every load is whole or did not happen."""
    shape = torch.Size([2, 2, 64, 64 * 64])
    size = shape.numel() * DTYPE.itemsize
    data = [bytes([1 + number]) * size for number in range(8)]
    adapter = start(size="64MiB")
    task = adapter.submit_store_task(KEYS, [memory(one, shape) for one in data])
    wait(adapter.get_store_event_fd())
    assert adapter.pop_completed_store_tasks()[task].is_successful()
    # The same chunks eight times over: a copy that takes a while. More than there are threads.
    batches = [[memory(bytes(size), shape) for _ in range(64)] for _ in range(4)]
    tasks = [adapter.submit_load_task(KEYS * 8, batch) for batch in batches]
    time.sleep(0.002)
    adapter.close()
    ends = [[int(obj.raw_data[-1]) for obj in batch] for batch in batches]
    time.sleep(0.2)
    assert ends == [[int(obj.raw_data[-1]) for obj in batch] for batch in batches]
    for task, batch in zip(tasks, batches, strict=True):
        result = adapter.query_load_result(task)
        assert result is not None, "every task ended"
        for number, obj in enumerate(batch):
            wanted = data[number % 8] if result.test(number) else bytes(size)
            assert bytes(obj.byte_array) == wanted
    adapter.close()
    adapter.submit_unlock(KEYS)


FORKING = """
import os, sys
sys.path[:0] = {path!r}
from l2_harness import *
from lmcache_beluga import ForkedHandleError
adapter = create(spec({pool!r}))
store(adapter, [key(1)], [payload(1)])
pid = os.fork()
if pid == 0:
    try:
        adapter.submit_lookup_and_lock_task([key(1)], {{}})
        code = 1
    except ForkedHandleError:
        adapter.submit_unlock([key(1)])
        adapter.close()
        code = 0
    os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
assert lock(adapter, [key(1)]) == [True]
adapter.close()
print("fine", flush=True)
"""


def test_a_forked_child_harms_nobody(pool: Path, start_child: Callable[..., Child]) -> None:
    path = [str(Path(__file__).parent)]
    child = start_child(FORKING.format(path=path, pool=str(pool)))
    child.expect("fine")
    child.finish()


WORKING = """
import sys
sys.path[:0] = {path!r}
from l2_harness import *
adapter = create(spec({pool!r}, heartbeat="20ms"))
print("ready", flush=True)
n = 0
while True:
    keys = [key(i) for i in range(n, n + 16)]
    if {phase!r} == "store":
        store(adapter, keys, [payload(i) for i in range(n, n + 16)])
        n += 16
    else:
        lock(adapter, [key(i) for i in range(64)])
        if {phase!r} == "load":
            load(adapter, [key(i) for i in range(64)], [memory() for _ in range(64)])
"""


@pytest.mark.parametrize("phase", ["store", "lookup", "load"])
def test_killed_in_the_middle(
    pool: Path, start: Start, start_child: Callable[..., Child], phase: str
) -> None:
    """The next server finds the pool warm, without half-written chunks, and nothing held."""
    filled(start(heartbeat="20ms", size="32MiB"), range(64))
    for attempt in range(2):
        path = [str(Path(__file__).parent)]
        child = start_child(WORKING.format(path=path, pool=str(pool), phase=phase))
        child.expect("ready")
        time.sleep(0.02 + 0.05 * attempt)
        child.kill()
    adapter = start(heartbeat="20ms")
    wait_until(lambda: adapter.report_status()["writing"] == 0)
    wait_until(lambda: adapter.report_status()["leased"] == 0)
    numbers = range(64) if phase != "store" else range(256)
    objects = [memory() for _ in numbers]
    loaded = load(adapter, [key(n) for n in numbers], objects)
    assert sum(loaded) >= 64 or phase == "store"
    for number, ok, obj in zip(numbers, loaded, objects, strict=True):
        assert not ok or bytes(obj.byte_array) == payload(number)
    with Pool.attach(pool) as looking:
        assert looking.check().errors == []
