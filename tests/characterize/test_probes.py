"""The native probes: they touch what they are given, nothing else, and end in time."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest

from lmcache_beluga import _native
from lmcache_beluga.errors import InvalidArgumentError, PoolIOError

CPU = min(os.sched_getaffinity(0))
SIZE = 1 << 20
GUARD = 4096
OPERATIONS = dict(_native.probe_operations())


@pytest.fixture
def guarded() -> Any:
    """Memory, and a function that says whether the bytes before and after it are untouched."""
    whole = np.full(SIZE + 2 * GUARD, 0xA5, dtype=np.uint8)
    skip = GUARD + -(whole.ctypes.data + GUARD) % 64
    skip -= 64 if skip + SIZE > whole.size - 64 else 0
    inner = whole[skip : skip + SIZE]
    outer = (whole[:skip], whole[skip + SIZE :])
    return inner, lambda: all((part == 0xA5).all() for part in outer)


def test_every_cpu_loads_and_stores() -> None:
    assert OPERATIONS["load"] is False
    assert OPERATIONS["store"] is True


@pytest.mark.parametrize("operation", OPERATIONS)
def test_blocks(operation: str, guarded: Any) -> None:
    memory, untouched = guarded
    before = memory.copy()
    ns = _native.time_blocks(memory, operation, 4096, 2000, 10, CPU)
    assert len(ns) == 2000
    assert all(one >= 0 for one in ns)
    assert untouched()
    changed = (memory != before).reshape(-1, 4096).any(axis=1)
    # 2000 scattered blocks of 256: all are met if they are written at all.
    assert changed.all() if OPERATIONS[operation] else not changed.any()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_passes(operation: str, threads: int, guarded: Any) -> None:
    memory, untouched = guarded
    before = memory.copy()
    # Of unequal sizes, so that their pieces do not simply alternate.
    parts = [memory[: SIZE // 4 * 3], memory[SIZE // 4 * 3 :]]
    passes = _native.time_passes(parts, operation, [CPU] * threads, 0.05)
    assert passes
    assert {nbytes for nbytes, _ in passes[:-1]} <= {SIZE}
    assert all(seconds > 0 for _, seconds in passes)
    assert untouched()
    lines = (memory != before).reshape(-1, 64).any(axis=1)
    assert lines.all() if OPERATIONS[operation] else not lines.any()


def test_a_chain_is_one_cycle_through_all_links(guarded: Any) -> None:
    memory, untouched = guarded
    links = _native.build_chain(memory, 256, 7)
    assert links == SIZE // 256
    assert untouched()
    words = memory.view(np.uint64)
    seen, at = set(), 0
    for _ in range(links):
        seen.add(at)
        at = int(words[at // 8])
    assert at == 0
    assert seen == set(range(0, SIZE, 256))
    ns, end = _native.chase_chain(memory, 0, links, 64, 10, CPU)
    assert len(ns) == links // 64
    assert end == 0


def test_a_chase_ends_in_time(guarded: Any) -> None:
    memory, _ = guarded
    _native.build_chain(memory, 64, 7)
    ns, _ = _native.chase_chain(memory, 0, 1 << 40, 64, 0.05, CPU)
    assert 1 <= len(ns) < 1 << 30


def test_a_chain_that_leads_out_is_not_followed(guarded: Any) -> None:
    memory, _ = guarded
    links = _native.build_chain(memory, 64, 7)
    for wrong in (SIZE, SIZE - 4, 1 << 63):
        memory.view(np.uint64)[:: 64 // 8] = wrong
        with pytest.raises(PoolIOError, match="overwritten"):
            _native.chase_chain(memory, 0, links, 64, 10, CPU)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: _native.build_chain(m, 32, 1),
        lambda m: _native.build_chain(m, SIZE, 1),
        lambda m: _native.build_chain(m[1:], 64, 1),
        lambda m: _native.chase_chain(m, 0, 10, 0, 1, CPU),
        lambda m: _native.chase_chain(m, 0, 10, 10, 31, CPU),
        lambda m: _native.chase_chain(m, 0, 10, 10, 1, -1),
        lambda m: _native.time_blocks(m, "load", 2 * SIZE, 1, 1, CPU),
        lambda m: _native.time_blocks(m, "load", 65, 1, 1, CPU),
        lambda m: _native.time_blocks(m, "load", 64, 0, 1, CPU),
        lambda m: _native.time_blocks(m, "load", 64, 1, float("nan"), CPU),
        lambda m: _native.time_blocks(m, "steal", 64, 1, 1, CPU),
        lambda m: _native.time_blocks(m, "load", 64, 1, 1, 1023),
        lambda m: _native.time_passes([], "load", [CPU], 1),
        lambda m: _native.time_passes([m], "load", [], 1),
        lambda m: _native.time_passes([m], "load", [CPU, 1023], 1),
        lambda m: _native.time_passes([m], "load", [CPU] * 1025, 1),
        lambda m: _native.time_passes([m], "load", [CPU], 0),
        lambda m: _native.ScratchMemory.in_dram(0, CPU),
        lambda m: _native.ScratchMemory.in_dram(1 << 50, CPU),
        lambda m: _native.ScratchMemory.in_dram(4097, CPU),
    ],
)
def test_arguments_are_checked(call: Any, guarded: Any) -> None:
    memory, untouched = guarded
    if 1023 in os.sched_getaffinity(0):
        pytest.skip("this machine has a CPU 1023")
    with pytest.raises(InvalidArgumentError):
        call(memory)
    assert (memory == 0xA5).all()
    assert untouched()


def test_read_only_memory_is_refused() -> None:
    with pytest.raises(BufferError):
        _native.time_blocks(bytes(4096), "load", 64, 1, 1, CPU)


def test_the_caller_stays_on_its_cpus_and_python_runs(guarded: Any) -> None:
    memory, _ = guarded
    before = os.sched_getaffinity(0)
    turns = 0
    done = threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            done.wait(0.001)

    other = threading.Thread(target=count)
    other.start()
    _native.time_passes([memory], "load", [CPU], 0.3)
    done.set()
    other.join(10)
    assert turns > 1
    assert os.sched_getaffinity(0) == before
