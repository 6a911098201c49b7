"""The shared L1 answers as LMCache's own: the same calls to both, the same codes and events."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from l1_pair import LAYOUT, Pair, key, keys
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.error import L1Error

RESIDENT = keys("abcdef")
TEMPORARY = keys("uvwxyz")


@pytest.fixture
def pair(pool_path: Path) -> Iterator[Pair]:
    pair = Pair(pool_path)
    yield pair
    pair.close()


def write(pair: Pair, some: list[ObjectKey], temporary: bool = False, tag: str = "w") -> None:
    pair.call("reserve_write", some, [temporary] * len(some), LAYOUT, tag=tag)


def test_a_chunk_s_life(pair: Pair) -> None:
    a, b = keys("ab")
    pair.call("reserve_read", [a, b])
    write(pair, [a, b])
    pair.call("reserve_read", [a])  # not before it is written
    pair.call("finish_write", [a, b], tag="w")
    pair.call("unsafe_read", [a, b])  # not without a lock
    pair.call("reserve_read", [a, b, key("absent")])
    pair.call("unsafe_read", [a, b, key("absent")])
    pair.call("delete", [a])  # not while it is read
    pair.call("finish_read", [a, b])
    pair.call("finish_read", [a])  # once too often
    pair.call("delete", [a, b, key("absent")])
    pair.call("reserve_read", [a, b])


def test_locks_are_counted(pair: Pair) -> None:
    (a,) = keys("a")
    write(pair, [a])
    pair.call("finish_write", [a], tag="w")
    pair.call("reserve_read", [a], read_locks=3)
    pair.call("reserve_read", [a])
    pair.call("finish_read", [a], read_locks=2)
    pair.call("delete", [a])
    pair.call("finish_read", [a], read_locks=2)
    pair.call("finish_read", [a])
    pair.call("delete", [a])


def test_writers_with_different_tags_do_not_meet(pair: Pair) -> None:
    (a,) = keys("a")
    write(pair, [a], tag="one")
    write(pair, [a], tag="two")
    write(pair, [a], tag="one")  # its own, a second time
    pair.call("finish_write", [a], tag="three")
    pair.call("delete", [a])  # not while it is written
    pair.call("finish_write", [a], tag="two")
    pair.call("finish_write_and_reserve_read", [a], tag="one")  # takes the one that is there
    write(pair, [a], tag="three")
    pair.call("finish_read", [a])
    assert pair.call("get_staging_memory_usage") == 0


def test_what_is_loaded_for_one_request_goes_with_it(pair: Pair) -> None:
    some = keys("uvw")
    write(pair, some, temporary=True)
    pair.call("finish_write_and_reserve_read", some, read_locks=2, tag="w")
    pair.call("reserve_read", some[:1])
    pair.call("finish_read", some)
    pair.call("unsafe_read", some)
    pair.call("finish_read", some)
    pair.call("reserve_read", some[1:])
    pair.call("finish_read", some[:1])
    pair.call("reserve_read", some)


def test_reservations_given_up(pair: Pair) -> None:
    some = keys("ab")
    write(pair, some)
    pair.call("finish_write_and_delete", [*some, key("absent")], tag="w")
    pair.call("reserve_read", some)
    pair.call("finish_write", some, tag="w")
    assert pair.call("get_staging_memory_usage") == 0


@pytest.mark.parametrize("force", [False, True])
def test_clear(pair: Pair, force: bool) -> None:
    read, idle, written = keys("riw")
    write(pair, [read, idle])
    pair.call("finish_write", [read, idle], tag="w")
    pair.call("reserve_read", [read])
    write(pair, [written])
    for l1, heard in zip((pair.stock, pair.ours), pair.heard, strict=True):
        l1.clear(force=force)
        heard.calls.clear()  # the shared L1 does not know what others had stored
    pair.call("unsafe_read", [read, idle])
    pair.call("reserve_read", [read, idle])
    pair.call("finish_read", [read, idle])
    pair.call("finish_write", [written], tag="w")


def test_force_takes_what_is_in_use(pair: Pair) -> None:
    read, written = keys("rw")
    write(pair, [read])
    pair.call("finish_write", [read], tag="w")
    pair.call("reserve_read", [read])
    write(pair, [written])
    pair.call("delete", [read, written], force=True)
    pair.call("unsafe_read", [read])
    pair.call("finish_read", [read])
    pair.call("finish_write", [written], tag="w")


def test_nonsense(pair: Pair) -> None:
    (a,) = keys("a")
    for l1 in (pair.stock, pair.ours):
        with pytest.raises(ValueError):
            l1.reserve_write([a], [False, True], LAYOUT)
    write(pair, [])
    for name in ("reserve_read", "unsafe_read", "finish_read", "finish_write", "delete"):
        pair.call(name, [])
    write(pair, [a])
    pair.call("finish_write", [a], tag="w")
    pair.call("reserve_read", [a], read_locks=-5)
    pair.call("finish_read", [a], read_locks=0)
    pair.call("delete", [a])


def test_locks_of_requests_that_never_come_back_lapse(pool_path: Path) -> None:
    pair = Pair(pool_path, read_ttl=1, write_ttl=1)
    a, b, u = keys("abu")
    write(pair, [a])
    pair.call("finish_write", [a], tag="w")
    pair.call("reserve_read", [a])
    write(pair, [b])
    write(pair, [u], temporary=True)
    time.sleep(1.2)
    pair.call("unsafe_read", [a])
    pair.call("finish_read", [a])
    pair.call("finish_write", [b, u], tag="w")
    pair.call("finish_write_and_reserve_read", [b], tag="w")
    write(pair, [b])  # another takes the buffer over
    pair.call("finish_write", [b], tag="w")
    pair.call("reserve_read", [a, b])
    pair.call("finish_read", [a, b])
    pair.call("delete", [a, b, u])
    pair.close()


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence(pair: Pair, seed: int) -> None:
    """Random calls, some of which make no sense, on few keys so that they meet."""
    draw = random.Random(seed)
    codes: set[L1Error] = set()
    for _ in range(400):
        temporary = draw.random() < 0.3
        # Keys are stored for good, or loaded for a request. LMCache's own L1 drops what is stored
        # while the same chunk is loaded for a request; the shared one keeps it.
        pool = TEMPORARY if temporary else RESIDENT
        some = draw.sample(pool, draw.randint(1, 4))
        tag = draw.choice(["one", "two"])
        locks = draw.choice([1, 1, 2])
        name = draw.choice(
            [
                *("reserve_read", "reserve_read", "finish_read", "finish_read", "unsafe_read"),
                *("reserve_write", "reserve_write", "finish_write", "finish_write_and_delete"),
                *("finish_write_and_reserve_read", "delete", "force"),
            ]
        )
        if name == "reserve_write":
            got = pair.call(name, some, [temporary] * len(some), LAYOUT, tag=tag)
        elif name in ("reserve_read", "finish_read"):
            got = pair.call(name, some, locks)
        elif name == "finish_write_and_reserve_read":
            got = pair.call(name, some, locks, tag=tag)
        elif name in ("finish_write", "finish_write_and_delete"):
            got = pair.call(name, some, tag=tag)
        elif name == "force":
            got = pair.call("delete", some[:1], force=True)
        else:
            got = pair.call(name, some)
        codes |= {code if isinstance(code, L1Error) else code[0] for code in got.values()}
    assert codes == set(L1Error) - {L1Error.OUT_OF_MEMORY}
