"""What the tests of the pool share: pools in /dev/shm that go away again, and other processes."""

from __future__ import annotations

import glob
import os
import shutil
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pool_modes
import pytest
from processes import Child

SHM = Path("/dev/shm")
#: Everything that this run puts into /dev/shm itself has this in its name.
OURS = f"beluga-test-{os.getpid()}-"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--qemu", action="store_true", help="also boot guests (integration/cxl)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sanitizers: native tests in ASan, UBSan and TSan builds")


@pytest.fixture
def shm_dir() -> Iterator[Path]:
    """An empty directory on tmpfs, removed afterwards with its pools' control blocks."""
    directory = SHM / f"{OURS}{uuid.uuid4().hex[:12]}"
    directory.mkdir()
    yield directory
    for pool in directory.rglob("*"):
        if pool.is_file() and not pool.is_symlink():
            remove_control_blocks(pool)
    shutil.rmtree(directory)


@pytest.fixture
def pool_path(shm_dir: Path) -> Path:
    """Where a test may make its pool."""
    return shm_dir / "pool"


@pytest.fixture(params=pool_modes.VISIBILITIES)
def visibility(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the pools that the test formats are shared (see :mod:`pool_modes`)."""
    pool_modes.use(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture
def start_child() -> Iterator[Callable[..., Child]]:
    """Starts other processes (see :class:`processes.Child`); what is left of them is killed."""
    children: list[Child] = []

    def start(body: str, *arguments: object, uid: int | None = None) -> Child:
        children.append(Child(body, *arguments, uid=uid))
        return children[-1]

    yield start
    for child in children:
        child.discard()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_in_shm() -> Iterator[None]:
    """At the end of a run /dev/shm holds nothing of it."""
    before = set(os.listdir(SHM))
    running = SHM / f"{OURS}running"
    running.touch()
    yield
    running.unlink()
    deadline = time.monotonic() + 5
    while left := leftovers(set(os.listdir(SHM)) - before):
        if time.monotonic() > deadline:
            for name in left:
                path = SHM / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            pytest.fail(f"left in /dev/shm by this run: {left}")
        time.sleep(0.1)


def remove_control_blocks(pool: Path) -> None:
    """Removes what killed processes leave of a pool; the last orderly one does so itself."""
    with pool.open("rb") as file:
        superblock = file.read(32)
    if superblock[:6] == b"BELUGA":
        for control in glob.glob(f"/dev/shm/beluga.{superblock[16:32].hex()}.*.ctl"):
            os.unlink(control)


def leftovers(names: set[str]) -> list[str]:
    """Which of these are ours. Control blocks do not tell: they are if nobody else is testing."""
    pools = [name for name in names if name.startswith(OURS)]
    controls = [name for name in names if name.endswith(".ctl") and is_abandoned(SHM / name)]
    return sorted(pools if others_are_testing() else pools + controls)


def others_are_testing() -> bool:
    pids = [path.name.split("-")[2] for path in SHM.glob("beluga-test-*-running")]
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def is_abandoned(control: Path) -> bool:
    """Are all processes that a control block names dead, or this one?"""
    try:
        processes = control.read_bytes()[4096 : 4096 + 32 * 512]
    except FileNotFoundError:
        return False
    pids = {struct.unpack_from("<I", processes, at + 4)[0] for at in range(0, len(processes), 512)}
    alive = {pid for pid in pids if pid and pid != os.getpid() and Path(f"/proc/{pid}").exists()}
    return not alive
