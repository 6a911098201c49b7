"""Storage that is gone, full, or taken by leases: refused puts and misses, never a crash."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Child, wait_until

from lmcache_beluga import Pool, PoolClosedError, PutResult, View
from lmcache_beluga._native import fingerprints

pytestmark = pytest.mark.usefixtures("visibility")

MIB = 1 << 20


# ---- truncated after attach

# Kept in a process of its own: a SIGBUS there is a failed test, not the end of all tests.
TRUNCATED = """
import numpy as np
from lmcache_beluga import PoolClosedError

path, size, heartbeat = arguments[0], int(arguments[1]), int(arguments[2])
pool = Pool.open(path, size=32 << 20, extent_size=1 << 20, heartbeat_ms=heartbeat,
                 dead_after_ms=max(4 * heartbeat, 10_000), lease_ms=max(4 * heartbeat, 10_000))
keys = [b"%d" % i for i in range(20)]
data = [np.random.default_rng(i).bytes(100_000) for i in range(20)]
pool.put_batch(keys, data)
views = pool.get_batch(keys)
reservation = pool.reserve(100_000)
os.truncate(path, size)
if heartbeat < 1000:
    while not pool.closed:
        time.sleep(0.001)

# Views stay readable memory, and say that they must not be trusted.
for view, chunk in zip(views, data):
    read = view.array.tobytes()
    assert len(read) == len(chunk)
    assert not view.valid() or read == chunk
reservation.array[:] = 1

def attempt(call):
    try:
        return call()
    except PoolClosedError as error:
        assert "truncated" in str(error) and "everything in it is a miss" in str(error), error
        return None

for key, chunk in zip(keys, data):
    buffer = bytearray(100_000)
    assert attempt(lambda: pool.read_into(key, buffer)) is None or buffer == chunk
    view = attempt(lambda: pool.get(key))
    if view is not None:
        read = view.array.tobytes()
        assert not view.valid() or read == chunk
attempt(lambda: pool.put(b"new", b"x" * 100_000))
attempt(lambda: reservation.commit(b"reserved"))
for key, byte in ((b"new", b"x"), (b"reserved", b"\1")):
    buffer = bytearray(100_000)
    assert attempt(lambda: pool.read_into(key, buffer)) is None or buffer == byte * 100_000
for call in (pool.check, pool.stats, pool.clear, pool.unpin_all, lambda: pool.evict(1 << 30),
             lambda: list(pool.keys()), lambda: pool.contains(keys), lambda: pool.remove(keys)):
    attempt(call)
if heartbeat < 1000:
    assert "truncated" in pool.close_reason, pool.close_reason
for view in views:
    view.release()
pool.close()
say("survived")
"""


@pytest.mark.parametrize("heartbeat", [10, 10_000], ids=["noticed", "before the heartbeat"])
@pytest.mark.parametrize("size", [0, 4096, MIB, 5 * MIB + 123, 31 * MIB])
def test_truncated_after_attach(
    pool_path: Path, start_child: Callable[..., Child], size: int, heartbeat: int
) -> None:
    child = start_child(TRUNCATED, pool_path, size, heartbeat)
    child.expect("survived")
    child.finish()


TRUNCATED_PAYLOAD = """
import numpy as np
from lmcache_beluga import PoolClosedError

path = arguments[0]
pool = Pool.open(path, size=64 << 20, extent_size=32 << 20, copy_threads=3)
data = np.random.default_rng(0).bytes(24 << 20)
assert pool.put(b"large", data) == 0
os.truncate(path, pool.info.metadata_bytes + (2 << 20))
buffer = bytearray(len(data))
try:
    assert pool.read_into(b"large", buffer) is None
except PoolClosedError:
    pass
say("survived")
"""


def test_payload_is_gone_under_all_threads_of_a_copy(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    child = start_child(TRUNCATED_PAYLOAD, pool_path)
    child.expect("survived")
    child.finish()


def test_unlinked_after_attach(pool_path: Path) -> None:
    """Whoever has the pool open goes on; the name is free for a new pool."""
    with Pool.open(pool_path, size=8 * MIB) as pool:
        pool.put(b"key", b"old")
        pool_path.unlink()
        with Pool.open(pool_path, size=8 * MIB) as new:
            assert new.uuid != pool.uuid
            assert new.get(b"key") is None
            new.put(b"key", b"new")
            assert pool.get(b"key").array.tobytes() == b"old"


# ---- a full file system


def namespaces() -> list[list[str]]:
    """How this machine lets us mount a small tmpfs over /dev/shm, where nobody else sees it."""
    trial = ["sh", "-c", "mount -t tmpfs -o size=1m tmpfs /dev/shm"]
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            if subprocess.run([*command, *trial], capture_output=True, check=False).returncode == 0:
                return [command]
        except FileNotFoundError:
            break
    return []


SMALL_SHM = """
import subprocess
import numpy as np
from lmcache_beluga import NoSpaceError

def mount(megabytes):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", "/dev/shm"],
                   check=True)

def chunk(i):
    return np.random.default_rng(i).bytes(300_000)

def fill():
    with open("/dev/shm/ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(65536))
        except OSError:
            pass
"""

DOCKER = "Docker gives /dev/shm 64 MiB"


@pytest.fixture(params=namespaces(), ids=" ".join)
def start_in_small_shm(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Child]]:
    children: list[Child] = []

    def start(body: str) -> Child:
        children.append(Child(SMALL_SHM + body, inside=request.param))
        return children[-1]

    yield start
    for child in children:
        child.discard()


if namespaces():

    def test_a_pool_larger_than_its_tmpfs(start_in_small_shm: Callable[[str], Child]) -> None:
        """Puts are refused when it is full; what was stored stays; space that returns is used."""
        child = start_in_small_shm("""
mount(16)
pool = Pool.open("/dev/shm/pool", size=256 << 20, extent_size=4 << 20, heartbeat_ms=10)
stored = []
for i in range(100):
    result = pool.put(b"%d" % i, chunk(i))
    if result is PutResult.STORED:
        stored.append(i)
    present = pool.contains([b"%d" % k for k in stored])
    for k, there in zip(stored, present):
        if there:
            buffer = bytearray(300_000)
            assert pool.read_into(b"%d" % k, buffer) == 300_000 and buffer == chunk(k), k
assert len(stored) >= 30, stored
stats = pool.stats()
assert stats["chunks"] >= 25, stats
assert pool.check().ok, pool.check().errors
# Everything leased: nothing can make room any more.
keys = [b"%d" % k for k in stored]
views = pool.get_batch(keys)
assert pool.put(b"refused", chunk(1000)) is PutResult.REFUSED
assert pool.stats()["refused_no_space"] >= 1, pool.stats()
say(pool.last_no_space)
for k, view in zip(stored, views):
    assert view is None or (view.array.tobytes() == chunk(k) and view.valid())
del view
views.clear()
assert pool.put(b"after", chunk(1001)) is PutResult.STORED
pool.clear()
assert all(pool.put(b"again %d" % i, chunk(i)) is PutResult.STORED for i in range(30))
assert pool.check().ok
assert not pool.closed
pool.close()
say("served")
""")
        message = child.hear()
        assert "/dev/shm/pool: no room for" in message
        assert DOCKER in message
        assert "--shm-size" in message
        child.expect("served")
        child.finish()

    def test_a_tmpfs_that_somebody_else_fills(start_in_small_shm: Callable[[str], Child]) -> None:
        child = start_in_small_shm("""
mount(32)
pool = Pool.open("/dev/shm/pool", size=24 << 20, extent_size=4 << 20, heartbeat_ms=10)
for i in range(10):
    assert pool.put(b"%d" % i, chunk(i)) is PutResult.STORED
fill()
views = pool.get_batch([b"%d" % i for i in range(10)])
results = {pool.put(b"new %d" % i, chunk(i)) for i in range(100)}
held = pool.get_batch([b"new %d" % i for i in range(100)])
assert PutResult.REFUSED in {pool.put(b"more %d" % i, chunk(i)) for i in range(100)}
for i, view in enumerate(views):
    assert view.array.tobytes() == chunk(i) and view.valid(), i
assert not pool.closed
say(pool.last_no_space)
os.unlink("/dev/shm/ballast")
del view, views
deadline = time.monotonic() + 60
while pool.put(b"later", chunk(7)) is not PutResult.STORED:
    assert time.monotonic() < deadline
assert pool.get(b"later").array.tobytes() == chunk(7)
assert pool.check().ok
say("served")
""")
        assert DOCKER in child.hear()
        child.expect("served")
        child.finish()

    def test_no_room_for_a_pool_at_all(start_in_small_shm: Callable[[str], Child]) -> None:
        child = start_in_small_shm("""
mount(8)
fill()
try:
    Pool.open("/dev/shm/pool", size=8 << 20)
except NoSpaceError as error:
    assert isinstance(error, OSError)
    say(error)
say(os.listdir("/dev/shm"))
""")
        message = child.hear()
        assert "/dev/shm/pool" in message
        assert DOCKER in message
        child.hear()
        child.finish()

    def test_no_room_to_join(start_in_small_shm: Callable[[str], Child]) -> None:
        """The pool lies elsewhere; the control block finds no room in /dev/shm."""
        child = start_in_small_shm("""
import tempfile
mount(8)
fill()
with tempfile.TemporaryDirectory() as directory:
    try:
        Pool.open(directory + "/pool", size=8 << 20)
    except NoSpaceError as error:
        say(error)
""")
        message = child.hear()
        assert "/dev/shm/beluga." in message
        assert DOCKER in message
        child.finish()


# ---- nothing may go


def fill_and_lease(pool: Pool, size: int) -> list[View]:
    views = []
    for i in range(10_000):
        if pool.put(b"%d" % i, bytes([i % 251]) * size) is PutResult.REFUSED:
            return views
        views.append(pool.get(b"%d" % i))
    raise AssertionError("the pool never fills")


def test_a_pool_full_of_leased_chunks_refuses_and_goes_on(pool_path: Path) -> None:
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB, chunk_hint=32768) as pool:
        views = fill_and_lease(pool, 100_000)
        assert len(views) >= 100
        before = pool.stats()
        assert before["refused_leased"] == 1
        assert pool.put(b"one more", bytes(100_000)) is PutResult.REFUSED
        assert pool.reserve(100_000) is None
        assert pool.put(b"of another size", bytes(20_000)) is PutResult.REFUSED
        assert pool.stats()["refused_leased"] == before["refused_leased"] + 3
        assert all(
            view.valid() and view.array.tobytes() == bytes([i % 251]) * 100_000
            for i, view in enumerate(views)
        )
        # One lease ends: exactly that chunk makes room.
        views[17].release()
        assert pool.put(b"one more", bytes(100_000)) is PutResult.STORED
        assert pool.contains([b"%d" % i for i in range(len(views))]) == [
            i != 17 for i in range(len(views))
        ]
        assert pool.put(b"and another", bytes(100_000)) is PutResult.STORED  # "one more" goes
        assert pool.check().ok


def test_leased_chunks_of_one_size_do_not_keep_another_size_out(pool_path: Path) -> None:
    """The size class is full of leases; an extent of a class that nobody leases makes way."""
    with Pool.open(pool_path, size=16 * MIB, extent_size=MIB, chunk_hint=32768) as pool:
        small = [b"small %d" % i for i in range(40)]
        pool.put_batch(small, [bytes(20_000)] * 40)
        views = fill_and_lease(pool, 100_000)
        assert not any(pool.contains(small))
        assert len(views) == pool.info.extents * 10


# ---- a full lane


def keys_of_one_bucket(pool: Pool, count: int) -> list[bytes]:
    """Keys whose index entries all lie in the same line."""
    keys: list[bytes] = []
    mask = pool.info.buckets - 1
    wanted = None
    for start in range(0, 10_000_000, 10_000):
        batch = [b"key %d" % i for i in range(start, start + 10_000)]
        for key, fingerprint in zip(batch, fingerprints(batch), strict=True):
            wanted = fingerprint & mask if wanted is None else wanted
            if fingerprint & mask == wanted:
                keys.append(key)
                if len(keys) == count:
                    return keys
    raise AssertionError("no such keys")


def test_a_full_lane_makes_room_by_evicting(pool_path: Path) -> None:
    with Pool.open(pool_path, size=16 * MIB, chunk_hint=8192) as pool:
        keys = keys_of_one_bucket(pool, 40)
        for i, key in enumerate(keys):
            assert pool.put(key, b"%d" % i * 100) is PutResult.STORED
            assert pool.get(key).array.tobytes() == b"%d" % i * 100
        present = pool.contains(keys)
        assert sum(present) == 8
        assert pool.stats()["lane_evictions"] == 32
        for i, key in enumerate(keys):
            view = pool.get(key)
            assert (view is not None) == present[i]
            assert view is None or view.array.tobytes() == b"%d" % i * 100
        report = pool.check()
        assert report.ok, report.errors
        assert report.lane_entries == report.chunks == 8


def test_a_lane_full_of_leased_chunks_refuses(pool_path: Path) -> None:
    with Pool.open(pool_path, size=16 * MIB, chunk_hint=8192) as pool:
        keys = keys_of_one_bucket(pool, 9)
        pool.put_batch(keys[:8], keys[:8])
        views = pool.get_batch(keys[:8])
        assert pool.put(keys[8], b"x") is PutResult.REFUSED
        assert pool.put(b"another bucket", b"x") is PutResult.STORED
        stats = pool.stats()
        assert (stats["refused_leased"], stats["writing"]) == (1, 0)
        assert [view.array.tobytes() for view in views] == keys[:8]
        views[3].release()
        assert pool.put(keys[8], b"x") is PutResult.STORED
        assert pool.contains(keys) == [i != 3 for i in range(9)]
        assert pool.check().ok


# ---- closed


def test_what_is_held_outlives_a_closed_pool(pool_path: Path) -> None:
    pool = Pool.open(pool_path, size=16 * MIB)
    pool.put(b"key", b"x" * 100_000)
    view = pool.get(b"key")
    array = view.array
    reservation = pool.reserve(1000)
    pool.close()
    pool.close()
    assert pool.closed
    assert pool.close_reason == "the pool was closed"
    assert not view.valid()
    assert array.tobytes() == view.array.tobytes() == b"x" * 100_000
    reservation.array[:] = 1  # still nobody else's
    with pytest.raises(PoolClosedError, match="the pool was closed"):
        reservation.commit(b"late")
    view.release()
    for method, arguments in (
        ("stats", ()),
        ("clear", ()),
        ("get", (b"key",)),
        ("put", (b"a", b"b")),
    ):
        with pytest.raises(PoolClosedError, match="the pool was closed"):
            getattr(pool, method)(*arguments)
    del pool, view, reservation
    assert array.tobytes() == b"x" * 100_000
    with Pool.attach(pool_path) as again:
        assert again.contains([b"key", b"late"]) == [True, False]
        assert again.stats()["writing"] == 0
        assert again.check().ok


def test_a_reserved_slot_is_not_reused_while_its_writer_lives(pool_path: Path) -> None:
    """After close() a transfer into a reserved slot may still be under way."""
    pool = Pool.open(pool_path, size=16 * MIB, heartbeat_ms=10)
    reservation = pool.reserve(1000)
    pool.close()
    with Pool.attach(pool_path, heartbeat_ms=10) as other:
        wait_until(lambda: other.stats()["lookups"] == 0)
        assert other.stats()["writing"] == 1
        reservation.abort()
        del reservation, pool
        wait_until(lambda: other.stats()["writing"] == 0)


def test_the_last_process_takes_the_control_block_along(pool_path: Path) -> None:
    with Pool.open(pool_path, size=16 * MIB) as first:
        control = Path("/dev/shm", f"beluga.{first.uuid.replace('-', '')}.0.ctl")
        assert control.exists()
        Pool.attach(pool_path).close()
        assert control.exists()
    assert not control.exists()
