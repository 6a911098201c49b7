"""A byte of the metadata changes behind everybody's back: a miss or a refusal, no wrong byte."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import flip_one, targets
from pool_layout import layout_of
from processes import Child

from lmcache_beluga import BelugaError, Pool, PutResult

pytestmark = pytest.mark.usefixtures("visibility")

KINDS = [
    "superblock",
    "host page",
    "claims",
    "all claims",
    "lanes",
    "free lanes",
    "headers",
    "all headers",
    "words",
    "hot lines",
    "all hot lines",
    "records",
    "stamps",
    "anywhere",
]
#: Kinds in which every bit says something that check() can compare with something else.
REDUNDANT = ["superblock", "claims", "lanes", "headers", "words", "hot lines", "records"]
GEOMETRY = {"size": 2 << 20, "extent_size": 65536, "chunk_hint": 1024}


def chunk(number: int) -> tuple[bytes, bytes, bytes]:
    """Key, data and metadata; every key has its own data."""
    size = 100 + number % 5 * 700 + number
    return b"key %d" % number, b"%6d" % number * (size // 6), b"meta %d" % number


def store(pool: Pool, numbers: range) -> None:
    for number in numbers:
        key, data, meta = chunk(number)
        pool.put(key, data, meta=meta, depth=number)


def read(pool: Pool, numbers: range) -> int:
    """Reads chunks in all ways; returns how many were there. What is there must be right."""
    found = 0
    for number in numbers:
        key, data, meta = chunk(number)
        view = pool.get(key)
        if view is not None:
            seen = (view.array.tobytes(), view.meta, view.record)
            if view.valid():
                assert seen == (data, meta, key), number
                found += 1
        buffer = bytearray(len(data) + 5000)
        size = pool.read_into(key, buffer)
        assert size is None or buffer[:size] == data, number
    for entry in pool.keys():  # noqa: SIM118
        assert entry.record == b"" or int(entry.record.split()[1]) < 1000
    return found


def flip_rounds(path: Path, first: int, last: int, say: Callable[..., None]) -> None:
    """Damages a pool in use, uses it, attaches again, and demands a pool that works."""
    for seed in range(first, last):
        say("seed", seed)
        rng = random.Random(seed)
        Pool.format(path, **GEOMETRY)
        layout = layout_of(path.read_bytes())
        with Pool.attach(path, heartbeat_ms=2) as pool:
            store(pool, range(60))
            views = [pool.get(chunk(number)[0]) for number in range(0, 60, 7)]
            for step in range(rng.randrange(1, 5)):
                if rng.random() < 0.8:
                    flip_one(path, targets(path, layout)[rng.choice(KINDS)], rng)
                act(pool, rng, step)
                if pool.closed:
                    break
            if not pool.closed:
                if rng.random() < 0.2:
                    time.sleep(0.03)  # the scrub looks at everything
                pool.check()
                read(pool, range(60))
            for number, view in zip(range(0, 60, 7), views, strict=True):
                if view is not None:
                    seen = view.array.tobytes()
                    assert not view.valid() or seen == chunk(number)[1], number
                    view.release()
        if rng.random() < 0.5:
            flip_one(path, targets(path, layout)[rng.choice(KINDS)], rng)
        try:
            pool = Pool.attach(path, heartbeat_ms=2)
        except BelugaError:
            Pool.format(path)
            pool = Pool.attach(path, heartbeat_ms=2)
        with pool:
            read(pool, range(60))
            report = pool.check()
            assert report.ok, (seed, report.errors)
            pool.clear()
            stats = pool.stats()
            assert (stats["chunks"], stats["writing"], stats["leased"]) == (0, 0, 0), seed
            results = {pool.put(*chunk(number)[:2]) for number in range(100, 130)}
            assert results == {PutResult.STORED}, (seed, results)
            assert pool.contains_prefix([chunk(number)[0] for number in range(100, 130)]) == 30
            report = pool.check()
            assert report.ok, (seed, report.errors)
    say("done")


def act(pool: Pool, rng: random.Random, step: int) -> None:
    """One thing that users do; whatever the damage, nothing but a BelugaError may come of it."""
    some = range(rng.randrange(30), rng.randrange(30, 60))
    keys = [chunk(number)[0] for number in some]
    with contextlib.suppress(BelugaError):
        rng.choice(
            [
                lambda: read(pool, some),
                lambda: pool.contains(keys),
                lambda: pool.contains_prefix(keys),
                lambda: store(pool, range(60 + 10 * step, 70 + 10 * step)),
                lambda: pool.evict(5000),
                lambda: pool.remove(keys[:5]),
                lambda: pool.touch(keys),
                lambda: (pool.pin_prefix(keys), pool.unpin_all()),
                lambda: pool.inspect(),
                lambda: pool.check(),
                lambda: pool.clear(),
                lambda: time.sleep(0.02),
            ]
        )()


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_flipped_bytes(pool_path: Path, start_child: Callable[..., Child], first: int) -> None:
    """In a process of its own, which says which seed it died of."""
    child = start_child(
        """
        from pathlib import Path
        from test_faults_metadata import flip_rounds
        flip_rounds(Path(arguments[0]), int(arguments[1]), int(arguments[2]), say)
        """,
        pool_path,
        first,
        first + 100,
    )
    heard = [child.hear()]
    while heard[-1] != "done":
        try:
            heard.append(child.hear())
        except AssertionError as error:
            raise AssertionError(f"{heard[-1]}: {error}") from None
    child.finish()


@pytest.mark.parametrize("kind", REDUNDANT)
def test_check_reports_damage_or_attach_refuses(pool_path: Path, kind: str) -> None:
    refused = 0
    for seed in range(40):
        rng = random.Random(seed)
        Pool.format(pool_path, **GEOMETRY)
        layout = layout_of(pool_path.read_bytes())
        # Heartbeats so rare that no scrub repairs it first.
        with Pool.attach(pool_path, heartbeat_ms=2_000, dead_after_ms=10_000) as pool:
            store(pool, range(60))
            assert pool.check().ok
            damage = flip_one(pool_path, targets(pool_path, layout)[kind], rng)
            if not pool.closed:
                report = pool.check()
                assert not report.ok, (kind, seed, damage)
                assert report.errors
            read(pool, range(60))
        try:
            Pool.attach(pool_path).close()
        except BelugaError:
            refused += 1
    assert refused == (40 if kind == "superblock" else 0)


@pytest.mark.parametrize("kind", ["lanes", "words", "hot lines", "records", "stamps"])
def test_the_scrub_repairs_a_pool_in_use(pool_path: Path, kind: str) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        Pool.format(pool_path, **GEOMETRY)
        layout = layout_of(pool_path.read_bytes())
        with Pool.attach(pool_path, heartbeat_ms=1) as pool:
            store(pool, range(60))
            damage = flip_one(pool_path, targets(pool_path, layout)[kind], rng)
            deadline = time.monotonic() + 10
            while not (report := pool.check()).ok or report.closing:
                assert time.monotonic() < deadline, (kind, seed, damage, report.errors)
                time.sleep(0.002)
            store(pool, range(60))  # what was lost is stored again
            assert read(pool, range(60)) == 60
            assert pool.check().ok
