"""Bad input to format and attach: a clear error that names the fix, nothing touched."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import Child, wait_until

from lmcache_beluga import (
    BelugaError,
    ChunkTooLargeError,
    CorruptPoolError,
    HalfFormattedError,
    HostInUseError,
    InvalidArgumentError,
    KeySchemeError,
    NotAPoolError,
    Pool,
    PoolBusyError,
    PoolClosedError,
    PoolMissingError,
    PoolTruncatedError,
    PoolUuidError,
    PutResult,
    RecordTooLargeError,
    VersionMismatchError,
)

pytestmark = pytest.mark.usefixtures("visibility")

MIB = 1 << 20
#: Superblock fields (see native/layout.hpp).
MAGIC, VERSION, EPOCH = 0, 8, 32
FORMAT_LOCK_BYTE = 1 << 62


@contextmanager
def locked(path: Path, byte: int) -> Iterator[None]:
    """Holds a lock of the pool's, as another process would."""
    with path.open("r+b") as file:
        flock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, flock)
        yield


def test_missing(pool_path: Path) -> None:
    with pytest.raises(PoolMissingError, match=f"{pool_path} does not exist.*beluga format") as e:
        Pool.attach(pool_path)
    assert isinstance(e.value, FileNotFoundError)
    with pytest.raises(PoolMissingError, match="does not exist"):
        Pool.open(pool_path)
    with pytest.raises(PoolMissingError, match="does not exist"):
        Pool.format(pool_path)
    assert not pool_path.exists()


def test_missing_directory(pool_path: Path) -> None:
    with pytest.raises(PoolMissingError, match=str(pool_path)):
        Pool.open(pool_path / "deeper" / "pool", size=MIB)


def test_empty_file(pool_path: Path) -> None:
    pool_path.touch()
    with pytest.raises(NotAPoolError, match=f"{pool_path} is empty: format it with 'beluga format"):
        Pool.attach(pool_path)
    # With a size it is as good as missing.
    with Pool.open(pool_path, size=8 * MIB) as pool:
        assert pool.info.devices[0].size == 8 * MIB


@pytest.mark.parametrize("size", [1, 4095, 4096, MIB])
def test_not_a_pool_is_never_touched(pool_path: Path, size: int) -> None:
    content = os.urandom(size)
    pool_path.write_bytes(content)
    before = pool_path.stat()
    for refused in (
        lambda: Pool.attach(pool_path),
        lambda: Pool.open(pool_path, size=8 * MIB),
        lambda: Pool.format(pool_path),
        lambda: Pool.format(pool_path, force=True),
    ):
        with pytest.raises(
            NotAPoolError, match=f"{pool_path} (is not a pool|holds data|has .* by)"
        ):
            refused()
    with pytest.raises(NotAPoolError, match=r"not a pool|too small"):
        Pool.format(pool_path, size=8 * MIB)
    assert pool_path.read_bytes()[:size] == content
    assert pool_path.stat().st_size in (before.st_size, 8 * MIB)


def test_a_refused_format_leaves_the_file_as_long_as_it_was(pool_path: Path) -> None:
    pool_path.write_bytes(b"somebody's data")
    with pytest.raises(NotAPoolError):
        Pool.format(pool_path, size=8 * MIB)
    assert pool_path.read_bytes() == b"somebody's data"


@pytest.mark.parametrize("what", ["symlink", "dangling", "directory", "fifo"])
def test_only_regular_files_and_devices(pool_path: Path, shm_dir: Path, what: str) -> None:
    target = shm_dir / "target"
    if what == "symlink":
        with Pool.open(target, size=8 * MIB):
            pass
        pool_path.symlink_to(target)
        before = target.read_bytes()
    elif what == "dangling":
        pool_path.symlink_to(target)
    elif what == "directory":
        pool_path.mkdir()
    else:
        os.mkfifo(pool_path)
    word = {"symlink": "symbolic link", "dangling": "symbolic link"}.get(what, what)
    for refused in (
        lambda: Pool.attach(pool_path),
        lambda: Pool.open(pool_path, size=8 * MIB),
        lambda: Pool.format(pool_path, size=8 * MIB, force=True),
    ):
        with pytest.raises(NotAPoolError, match=f"(?i){word}"):
            refused()
    if what == "symlink":
        assert target.read_bytes() == before
    if what == "dangling":
        assert not target.exists()


def test_too_small(pool_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"too small .*raise --size \(beluga.size\)"):
        Pool.open(pool_path, size=65536)


def test_a_file_of_a_few_bytes_cannot_be_formatted(pool_path: Path) -> None:
    pool_path.write_bytes(bytes(100))
    with pytest.raises(NotAPoolError, match="100 bytes: too small for a pool; it was not touched"):
        Pool.format(pool_path)
    assert pool_path.read_bytes() == bytes(100)


def test_half_formatted(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB)
    poke(pool_path, MAGIC, b"BELUGA??")
    with pytest.raises(
        HalfFormattedError, match=r"half-formatted: .*run 'beluga format' on it again"
    ):
        Pool.attach(pool_path)
    Pool.format(pool_path)
    with Pool.attach(pool_path) as pool:
        assert pool.check().ok


def test_a_format_that_was_killed_is_half_a_pool(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    """Whatever the moment: afterwards the file is the old pool, half-formatted, or the new one."""
    Pool.format(pool_path, size=64 * MIB, chunk_hint=4096)
    for delay in range(12):
        child = start_child(
            """
            say("ready")
            hear()
            while True:
                Pool.format(arguments[0])
            """,
            pool_path,
        )
        child.expect("ready")
        child.say("go")
        time.sleep(delay / 1000)
        child.kill()
        try:
            Pool.attach(pool_path).close()
        except HalfFormattedError:
            Pool.format(pool_path)
        with Pool.attach(pool_path) as pool:
            pool.put(b"key", b"x")
            assert pool.check().ok


def test_another_version(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB)
    poke(pool_path, VERSION, struct.pack("<I", 2))
    with pytest.raises(VersionMismatchError, match="version 2, this build reads version 1: format"):
        Pool.attach(pool_path)
    Pool.format(pool_path)  # its magic is ours
    Pool.attach(pool_path).close()


def test_damaged_superblock(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB)
    poke(pool_path, 200, b"?")
    with pytest.raises(CorruptPoolError, match=r"superblock is damaged \(crc\).*format it anew"):
        Pool.attach(pool_path)


def test_truncated_before_attach(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB)
    os.truncate(pool_path, 8 * MIB - 4096)
    with pytest.raises(PoolTruncatedError, match=r"has 8384512 bytes, its superblock says 8388608"):
        Pool.attach(pool_path)


def test_another_key_scheme(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB, key_scheme="sha256/256")
    Pool.attach(pool_path, key_scheme="sha256/256").close()
    Pool.attach(pool_path).close()  # a tool that makes no keys of prompts
    with pytest.raises(
        KeySchemeError,
        match=r"hashed as 'sha256/256', this process hashes as 'builtin/0'.*PYTHONHASHSEED",
    ):
        Pool.attach(pool_path, key_scheme="builtin/0")


def test_the_first_process_that_hashes_sets_the_scheme(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB)
    with (
        Pool.attach(pool_path),
        Pool.attach(pool_path, key_scheme="one"),
        pytest.raises(KeySchemeError, match=r"this process hashes as 'two'.*PYTHONHASHSEED"),
    ):
        Pool.attach(pool_path, key_scheme="two")
    with pytest.raises(KeySchemeError):  # the chunks are still there
        Pool.attach(pool_path, key_scheme="two")
    Pool.attach(pool_path, key_scheme="one").close()


def test_another_uuid(pool_path: Path) -> None:
    info = Pool.format(pool_path, size=8 * MIB)
    Pool.attach(pool_path, uuid=info.uuid).close()
    other = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(
        PoolUuidError, match=f"holds pool {info.uuid}, beluga.uuid asks for {other}"
    ):
        Pool.attach(pool_path, uuid=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host_id": 1}, r"host id 1 .*formatted for 1 host.*lower beluga.host_id"),
        ({"host_id": 64}, r"host id 64 .*--max-hosts"),
        ({"heartbeat_ms": 0}, r"beluga.heartbeat must be 1 to 60000 ms, not 0"),
        ({"dead_after_ms": 399}, r"beluga.dead_after must be 400 to 3600000 ms, not 399"),
        ({"lease_ms": 399}, r"beluga.lease must be 400 to 60000 ms, not 399"),
        ({"lease_ms": 60_001}, r"beluga.lease must be 400 to 60000 ms, not 60001"),
    ],
)
def test_attach_options_out_of_range(
    pool_path: Path, options: dict[str, int], message: str
) -> None:
    Pool.format(pool_path, size=8 * MIB, max_hosts=1)
    with pytest.raises(InvalidArgumentError, match=message):
        Pool.attach(pool_path, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_hosts": 0}, InvalidArgumentError, "max_hosts must be 1 to 64, not 0"),
        ({"max_hosts": 65}, InvalidArgumentError, "max_hosts must be 1 to 64, not 65"),
        ({"extent_size": 65537}, InvalidArgumentError, "extent_size must be a power of two"),
        ({"extent_size": 32768}, InvalidArgumentError, "from 64 KiB to 64 GiB, not 32 KiB"),
        ({"extent_size": 8 * MIB}, InvalidArgumentError, "too small for extents of 8 MiB"),
        ({"chunk_hint": 10}, InvalidArgumentError, "chunk_hint must be 64 bytes to 64 GiB"),
        ({"key_scheme": "s" * 192}, InvalidArgumentError, "key_scheme is longer than 191 bytes"),
        (
            {"payload_visibility": "none"},
            InvalidArgumentError,
            "'flush' or 'direct', not 'none'",
        ),
        ({"visibility": "maybe"}, InvalidArgumentError, "'coherent' or 'noncoherent', not 'maybe'"),
    ],
)
def test_format_options_out_of_range(
    pool_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Pool.format(pool_path, size=8 * MIB, **options)


def test_unknown_options(pool_path: Path) -> None:
    with pytest.raises(TypeError, match="unknown keywords: siez"):
        Pool.open(pool_path, siez=8 * MIB)
    with pytest.raises(TypeError, match="lease"):
        Pool.attach(pool_path, lease=5)


# ---- formatting what is in use


def test_formatted_twice_at_once(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB)
    with locked(pool_path, FORMAT_LOCK_BYTE):
        with pytest.raises(PoolBusyError, match="is being formatted by another process right now"):
            Pool.format(pool_path)
        with pytest.raises(PoolBusyError, match="is being formatted by another process: try again"):
            Pool.attach(pool_path, open_timeout_ms=50)
    Pool.format(pool_path)


def test_processes_that_format_at_once_leave_one_whole_pool(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    children = [
        start_child(
            """
            from lmcache_beluga import PoolBusyError
            say("ready")
            hear()
            for _ in range(20):
                try:
                    Pool.format(arguments[0], size=8 << 20)
                except PoolBusyError as error:
                    assert "being formatted" in str(error), error
            """,
            pool_path,
        )
        for _ in range(3)
    ]
    for child in children:
        child.expect("ready")
    for child in children:
        child.say("go")
    for child in children:
        child.finish()
    with Pool.attach(pool_path) as pool:
        pool.put(b"key", b"x")
        assert pool.check().ok


def test_processes_that_open_at_once_share_one_pool(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    children = [
        start_child(
            """
            say("ready")
            hear()
            with Pool.open(arguments[0], size=8 << 20) as pool:
                pool.put(arguments[1].encode(), b"x")
                say(pool.uuid)
                hear()
                say(*pool.contains([b"0", b"1", b"2", b"3"]))
            """,
            pool_path,
            number,
        )
        for number in range(4)
    ]
    for child in children:
        child.expect("ready")
    for child in children:
        child.say("go")
    assert len({child.hear() for child in children}) == 1
    for child in children:
        child.say("go")
    for child in children:
        child.expect("True True True True")
        child.finish()


def test_format_of_a_pool_in_use_is_refused_and_force_closes_its_users(pool_path: Path) -> None:
    with Pool.open(pool_path, size=8 * MIB, heartbeat_ms=10) as pool, ThreadPoolExecutor() as other:
        pool.put(b"key", b"x" * 5000)
        view = pool.get(b"key")
        with pytest.raises(PoolBusyError, match=r"in use \(host 0\).*--force"):
            Pool.format(pool_path)
        assert pool.get(b"key").array.tobytes() == b"x" * 5000

        formatting = other.submit(Pool.format, pool_path, force=True)
        wait_until(lambda: pool.closed)
        assert "formatted anew while it was attached" in pool.close_reason
        with pytest.raises(PoolClosedError, match=r"formatted anew.*everything in it is a miss"):
            pool.get(b"key")
        assert not view.valid()
        pool.close()
        fresh = formatting.result()
        assert fresh.uuid != pool.uuid
        assert fresh.epoch > pool.info.epoch
    with Pool.attach(pool_path) as after:
        assert not after.contains([b"key"])[0]
        assert after.check().ok


def test_nobody_commits_into_a_pool_that_was_formatted_anew(
    pool_path: Path, start_child: Callable[..., Child]
) -> None:
    """The epoch is looked at before each commit, not only at each heartbeat."""
    child = start_child(
        """
        from lmcache_beluga import PoolClosedError
        pool = Pool.open(arguments[0], size=8 << 20, heartbeat_ms=15_000, dead_after_ms=60_000,
                         lease_ms=60_000)
        reservation = pool.reserve(1000)
        say("reserved")
        hear()
        reservation.array[:] = 1
        try:
            reservation.commit(b"key")
        except PoolClosedError as error:
            say(error)
        """,
        pool_path,
    )
    child.expect("reserved")
    poke(pool_path, EPOCH, struct.pack("<Q", 2))  # as a forced format does first
    child.say("go")
    assert "formatted anew" in child.hear()
    child.finish()


# ---- who may use it


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_pool_files_are_private_whatever_the_umask(pool_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Pool.open(pool_path, size=8 * MIB) as pool:
            modes = {
                stat.S_IMODE(path.stat().st_mode) for path in (pool_path, *control_blocks(pool))
            }
    finally:
        os.umask(before)
    assert modes == {0o600}


def test_wider_by_setting_alone(pool_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Pool.open(pool_path, size=8 * MIB, mode=0o660) as pool:
            modes = {
                stat.S_IMODE(path.stat().st_mode) for path in (pool_path, *control_blocks(pool))
            }
    finally:
        os.umask(before)
    assert modes == {0o660}


def test_permission_denied(pool_path: Path, start_child: Callable[..., Child]) -> None:
    """Another user is refused: root tests as nobody, anybody else as himself without rights."""
    Pool.format(pool_path, size=8 * MIB)
    if os.geteuid() == 0:
        pool_path.parent.chmod(0o755)
        uid: int | None = 65534
    else:
        pool_path.chmod(0o000)
        uid = None
    child = start_child(
        """
        from lmcache_beluga import PoolPermissionError
        for attempt in (Pool.attach, Pool.format):
            try:
                attempt(arguments[0])
            except PoolPermissionError as error:
                assert isinstance(error, PermissionError)
                say(error)
        """,
        pool_path,
        uid=uid,
    )
    for _ in range(2):
        message = child.hear()
        assert str(pool_path) in message
        assert "ermission" in message
        assert "beluga.mode" in message or "chmod" in message
    child.finish()


def test_another_dev_shm_with_the_same_host_id(pool_path: Path, shm_dir: Path) -> None:
    """Two containers share the pool file and not /dev/shm: they cannot both be host 0."""
    elsewhere = shm_dir / "other-dev-shm"
    elsewhere.mkdir()
    with Pool.open(pool_path, size=8 * MIB, max_hosts=2) as pool:
        pool.put(b"key", b"x")
        with pytest.raises(
            HostInUseError,
            match=r"host id 0 .*does not share this one's /dev/shm.*--ipc=host.*beluga.host_id",
        ):
            Pool.attach(pool_path, control_dir=str(elsewhere))
        # With a host id of its own it shares the cache.
        with Pool.attach(pool_path, control_dir=str(elsewhere), host_id=1) as other:
            assert other.get(b"key").array.tobytes() == b"x"
            other.put(b"theirs", b"y")
            assert pool.get(b"theirs").array.tobytes() == b"y"
            with pytest.raises(HostInUseError, match="host id 1"):
                Pool.attach(pool_path, host_id=1)
    Pool.attach(pool_path, control_dir=str(elsewhere)).close()


@pytest.mark.parametrize("refused", [{"key_scheme": "other"}, {"copy_threads": 100_000}])
def test_a_refused_process_leaves_nothing_behind(pool_path: Path, refused: dict[str, Any]) -> None:
    info = Pool.format(pool_path, size=8 * MIB, key_scheme="this")
    with pytest.raises(BelugaError):
        Pool.attach(pool_path, **{"key_scheme": "this"} | refused)
    assert control_blocks(info) == []
    with Pool.attach(pool_path, key_scheme="this") as pool:
        with pytest.raises(BelugaError):
            Pool.attach(pool_path, **{"key_scheme": "this"} | refused)
        assert len(control_blocks(info)) == 1
        assert pool.put(b"key", b"x") is PutResult.STORED
    assert control_blocks(info) == []


def test_too_many_processes(pool_path: Path) -> None:
    Pool.format(pool_path, size=8 * MIB)
    handles = [Pool.attach(pool_path) for _ in range(32)]
    with pytest.raises(PoolBusyError, match="host 0 already has 32 processes attached"):
        Pool.attach(pool_path)
    handles.pop().close()
    handles.append(Pool.attach(pool_path))
    for handle in handles:
        handle.close()


# ---- chunks that do not fit


def test_a_chunk_larger_than_an_extent(pool_path: Path) -> None:
    with Pool.open(pool_path, size=8 * MIB, extent_size=MIB) as pool:
        for refused in (
            lambda: pool.put(b"key", bytes(MIB + 1)),
            lambda: pool.put_batch([b"a", b"key"], [b"x", bytes(MIB + 1)]),
            lambda: pool.reserve(MIB + 1),
        ):
            with pytest.raises(
                ChunkTooLargeError,
                match=r"1048577 bytes does not fit into an extent of 1048576.*--extent-size",
            ):
                refused()
        report = pool.check()
        assert report.ok
        assert report.writing == 0


def test_a_record_larger_than_a_descriptor(pool_path: Path) -> None:
    with Pool.open(pool_path, size=8 * MIB) as pool:
        limit = pool.info.record_bytes
        assert pool.put(b"k" * (limit - 10), b"x", meta=b"m" * 10) == 0
        reservation = pool.reserve(1)
        for refused in (
            lambda: pool.put(b"k" * (limit + 1), b"x"),
            lambda: pool.put(b"k", b"x", meta=b"m" * limit),
            lambda: pool.put_batch([b"a", b"k" * 70_000], [b"x", b"y"]),
            lambda: reservation.commit(b"k" * (limit + 1)),
        ):
            with pytest.raises(RecordTooLargeError, match=f"does not fit into the {limit} bytes"):
                refused()
        stats = pool.stats()
        assert (stats["chunks"], stats["writing"]) == (1, 0)


def test_arguments_that_make_no_sense(pool_path: Path) -> None:
    import numpy as np

    with Pool.open(pool_path, size=8 * MIB) as pool:
        for refused, message in (
            (lambda: pool.put(b"key", b""), "at least one byte"),
            (lambda: pool.reserve(0), "at least one byte"),
            (lambda: pool.put_batch([b"a", b"b"], [b"x"]), "2 keys and 1 buffers"),
            (lambda: pool.put_batch([b"a"], [b"x"], metas=[b"", b""]), "one metadata for each key"),
        ):
            with pytest.raises(InvalidArgumentError, match=message):
                refused()
        with pytest.raises((ValueError, BufferError), match="contiguous"):
            pool.put(b"key", np.zeros((4, 4), np.uint8)[:, ::2])
        with pytest.raises((ValueError, BufferError, TypeError)):
            pool.read_into(b"key", b"read-only")
        with pytest.raises((TypeError, InvalidArgumentError)):
            pool.put(3.5, b"x")
        with pytest.raises((TypeError, InvalidArgumentError)):
            pool.put(b"", b"x")
        pool.put(b"key", b"12345")
        with pytest.raises(InvalidArgumentError, match="a buffer is smaller than the chunk"):
            pool.read_into(b"key", bytearray(4))
        assert pool.stats()["leased"] == 0
        assert pool.check().ok


# ---- pools of several devices


@pytest.fixture
def devices(shm_dir: Path) -> list[Path]:
    return [shm_dir / f"device{i}" for i in range(3)]


def test_devices_in_another_order(devices: list[Path]) -> None:
    Pool.format(devices, size=8 * MIB)
    Pool.attach(devices).close()
    for wrong in (devices[::-1], [devices[0], devices[2], devices[1]]):
        with pytest.raises(NotAPoolError, match="the order in which they were formatted"):
            Pool.attach(wrong)


def test_a_device_left_out(devices: list[Path]) -> None:
    Pool.format(devices, size=8 * MIB)
    with pytest.raises(InvalidArgumentError, match="made of 3 devices, 2 given: name them all"):
        Pool.attach(devices[:2])
    with pytest.raises(InvalidArgumentError, match="made of 3 devices, 1 given"):
        Pool.attach(devices[0])


def test_a_device_twice(devices: list[Path]) -> None:
    Pool.format(devices, size=8 * MIB)
    with pytest.raises(InvalidArgumentError, match="is named twice as a device of the pool"):
        Pool.attach([devices[0], devices[1], devices[1]])
    with pytest.raises(InvalidArgumentError, match="is named twice"):
        Pool.format([devices[0], devices[0]])


def test_a_device_of_another_pool(devices: list[Path], shm_dir: Path) -> None:
    Pool.format(devices, size=8 * MIB)
    other = [shm_dir / "other0", shm_dir / "other1"]
    Pool.format(other, size=8 * MIB)
    with pytest.raises(NotAPoolError, match=f"{other[1]} is not device 1 of the pool"):
        Pool.attach([devices[0], other[1], devices[2]])


def test_no_device() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no pool path given: set beluga.pool"):
        Pool.attach([])


def poke(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def control_blocks(pool: Pool) -> list[Path]:
    return list(Path("/dev/shm").glob(f"beluga.{pool.uuid.replace('-', '')}.*.ctl"))
