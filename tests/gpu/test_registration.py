"""Registration of pool memory against a stand-in for the CUDA runtime: what is asked, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recording_runtime import RecordingRuntime

from lmcache_beluga.errors import InvalidArgumentError
from lmcache_beluga.gpu import registration as registration_module
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool

EXTENT = 1 << 20
CHUNK = np.arange(64 << 10, dtype=np.uint8)


@pytest.fixture
def pool(pool_path: Path) -> Iterator[Pool]:
    Pool.format(pool_path, size=16 << 20, extent_size=EXTENT, chunk_hint=CHUNK.nbytes)
    with Pool.attach(pool_path) as pool:
        yield pool


def covered(runtime: RecordingRuntime, address: int, nbytes: int) -> bool:
    return any(
        begin <= address and address + nbytes <= begin + size
        for begin, size in runtime.registered.items()
    )


def test_what_is_used_is_registered_once(pool: Pool) -> None:
    runtime = RecordingRuntime()
    registration = Registration(pool, runtime)
    pool.put(b"chunk", CHUNK)
    with pool.get(b"chunk") as view, pool.reserve(CHUNK.nbytes) as slot:
        for hold in (view, slot, view):
            assert registration.covers(hold)
            assert covered(runtime, hold.address, CHUNK.nbytes)
        assert registration.nbytes == EXTENT * len(runtime.registered)
        assert runtime.calls.count("register") == len(runtime.registered)
    registration.close()
    assert runtime.registered == {}
    registration.close()
    assert runtime.calls.count("unregister") == runtime.calls.count("register")


def test_nothing_is_asked_again_after_a_refusal(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = RecordingRuntime(refuse=0)
    registration = Registration(pool, runtime)
    pool.put(b"chunk", CHUNK)
    with pool.get(b"chunk") as view:
        assert not registration.covers(view)
        assert not registration.covers(view)
    assert "out of memory" in registration.refused
    assert runtime.calls == ["register"]
    assert len(caplog.records) == 1
    registration.close()


def test_extents_with_chunks_are_registered_ahead(pool: Pool) -> None:
    for number in range(40):
        pool.put(b"%d" % number, CHUNK)
    used = {entry.extent for entry in list(pool.keys())}
    assert len(used) > 1
    runtime = RecordingRuntime()
    registration = Registration(pool, runtime)
    registration.begin_ahead()
    deadline = time.monotonic() + 30
    while len(runtime.registered) < len(used):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    registration.close()


def settled(runtime: RecordingRuntime, extents: int) -> int:
    """Extents registered, once there are as many, and a moment later."""
    deadline = time.monotonic() + 30
    while len(runtime.registered) < extents:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    return len(runtime.registered)


def test_extents_are_registered_before_they_are_used(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing must not wait until half a second's worth of pages is made and locked."""
    monkeypatch.setattr(registration_module, "_AHEAD", 2 * EXTENT)
    runtime = RecordingRuntime()
    registration = Registration(pool, runtime)
    registration.begin_ahead()
    assert settled(runtime, 2) == 2
    slots = []
    while len({pool.extent_of(slot.slot) for slot in slots}) < 3:
        slots.append(pool.reserve(CHUNK.nbytes))
        assert registration.covers(slots[-1])
    used = 1 + max(pool.extent_of(slot.slot)[0] for slot in slots)
    assert settled(runtime, used + 2) == min(used + 2, pool.info.extents)
    for slot in slots:
        slot.abort()
    registration.close()


def test_everything_is_registered_on_request(pool: Pool) -> None:
    runtime = RecordingRuntime()
    registration = Registration(pool, runtime)
    registration.begin_ahead(everything=True)
    assert settled(runtime, pool.info.extents) == pool.info.extents
    registration.close()
    assert runtime.registered == {}


def test_nothing_is_registered_ahead_where_others_take_pages_away(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host, or a process that is stopped while it does."""
    Pool.format(pool_path, size=16 << 20, extent_size=EXTENT, chunk_hint=CHUNK.nbytes)
    for stopped in (False, True):
        with Pool.attach(pool_path) as pool:
            if stopped:
                monkeypatch.setattr(pool, "hold_pages", lambda: False)
            runtime = RecordingRuntime()
            registration = Registration(pool, runtime)
            registration.begin_ahead(everything=True)
            if stopped:
                time.sleep(0.2)
                assert runtime.calls == []
            else:
                assert settled(runtime, pool.info.extents)
            registration.close()
    pool_path.unlink()
    Pool.format(pool_path, size=16 << 20, extent_size=EXTENT, max_hosts=2)
    with Pool.attach(pool_path) as pool:
        runtime = RecordingRuntime()
        registration = Registration(pool, runtime)
        registration.begin_ahead(everything=True)
        time.sleep(0.2)
        assert runtime.calls == []
        registration.close()


@pytest.mark.parametrize("hosts", [1, 2])
def test_memory_that_is_locked_and_stays_is_not_asked_for_again(
    pool_path: Path, hosts: int
) -> None:
    """Half a millisecond for each chunk of 32 MiB otherwise. The stand-in makes no pages.

    With other hosts, they may take them away from an extent that this one does not use.
    """
    big = 64 << 20  # storage is asked for a step of 32 MiB at a time
    Pool.format(pool_path, size=4 * big, extent_size=big, chunk_hint=big // 4, max_hosts=hosts)
    with Pool.attach(pool_path) as pool:
        registration = Registration(pool, RecordingRuntime())
        slots = [pool.reserve(big // 4)]
        assert registration.covers(slots[0])
        before = pool_path.stat().st_blocks
        while len(slots) < 4:
            slots.append(pool.reserve(big // 4))
        assert len({pool.extent_of(slot.slot) for slot in slots}) == 1
        grown = (pool_path.stat().st_blocks - before) * 512
        assert grown == (0 if hosts == 1 else big // 2)
        for slot in slots:
            slot.abort()
        registration.close()


def test_only_extents_are_kept(pool: Pool) -> None:
    with pytest.raises(InvalidArgumentError, match="extent"):
        pool.note_kept(pool.info.extents)


def test_pages_stay_while_a_device_holds_them(pool: Pool, pool_path: Path) -> None:
    """A GPU would go on with the old pages of an extent whose storage was given back."""

    def blocks() -> int:
        return pool_path.stat().st_blocks

    def filled() -> int:
        for number in range(100):
            pool.put(b"%d" % number, CHUNK)
        return blocks()

    full = filled()
    pool.clear()
    assert blocks() < full // 2
    with Pool.attach(pool_path) as other:
        registration = Registration(other, RecordingRuntime())
        full = filled()
        pool.clear()
        assert blocks() >= full
        registration.close()
    full = filled()
    pool.clear()
    assert blocks() < full // 2
