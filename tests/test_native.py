"""Builds and runs the C++ tests: as they are, and under the sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "tests" / "native").glob("test_*.cpp"))
# Tests on small pools run under either visibility policy.
TESTS = [source.stem for source in SOURCES] + [
    f"{source.stem}_noncoherent" for source in SOURCES if "small_pool.hpp" in source.read_text()
]
# On simulated hosts. Their fibers are more than ASan and TSan can follow.
SIMULATIONS = sorted(source.stem for source in ROOT.glob("tests/native/sim/test_*.cpp"))
# Under UBSan a few worlds: the mutations are for the plain build alone.
FEWER = {"test_chaos": ["60"], "test_scenarios": ["all", "10"]}


@dataclass(frozen=True)
class Build:
    """One way to compile the core and its tests, in a directory that later runs find again."""

    name: str
    sanitizers: str
    flags: str
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def directory(self) -> Path:
        return ROOT / "build" / f"native-{self.name}"


BUILDS = {
    "plain": Build("plain", "", "-O2"),  # without NDEBUG: assertions stay
    "asan": Build(
        "asan",
        "address,undefined",
        "-O1",
        (
            ("ASAN_OPTIONS", "detect_stack_use_after_return=1:strict_string_checks=1"),
            ("UBSAN_OPTIONS", "print_stacktrace=1"),
        ),
    ),
    "ubsan": Build("ubsan", "undefined", "-O1", (("UBSAN_OPTIONS", "print_stacktrace=1"),)),
    "tsan": Build("tsan", "thread", "-O1", (("TSAN_OPTIONS", "halt_on_error=1"),)),
}


def configure_and_build(build: Build) -> Path:
    """Returns the folder of the executables. A second call has nothing left to do."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        build.directory,
        *(generator if not (build.directory / "CMakeCache.txt").exists() else []),
        "-DBELUGA_NATIVE_TESTS=ON",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CXX_FLAGS_RELEASE={build.flags}",
        f"-DBELUGA_SANITIZE={build.sanitizers}",
    ]
    parallel = str(len(os.sched_getaffinity(0)))
    for command in (configure, ["cmake", "--build", build.directory, "--parallel", parallel]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return build.directory / "tests" / "native"


@pytest.fixture(scope="session")
def executables() -> dict[str, Path]:
    return {}


def run(executables: dict[str, Path], build: Build, test: str, *arguments: str) -> str:
    if build.name not in executables:
        executables[build.name] = configure_and_build(build)
    command = [executables[build.name] / test, *arguments]
    assert command[0].exists(), "not built: simulations need Boost.Context (libboost-context-dev)"
    environment = {**os.environ, **dict(build.environment)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "unexpected memory mapping" in done.stderr:
        # ThreadSanitizer of older compilers wants less randomness than newer kernels give.
        command = ["setarch", platform.machine(), "-R", *command]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-12000:]
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("test", TESTS)
def test_native(executables: dict[str, Path], test: str) -> None:
    run(executables, BUILDS["plain"], test)


@pytest.mark.sanitizers
@pytest.mark.timeout(900)
@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("build", ["asan", "tsan"])
def test_sanitized(executables: dict[str, Path], build: str, test: str) -> None:
    run(executables, BUILDS[build], test)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("test", SIMULATIONS)
def test_simulation(
    executables: dict[str, Path], capsys: pytest.CaptureFixture[str], test: str
) -> None:
    said = run(executables, BUILDS["plain"], test)
    if test in ("test_chaos", "test_mutations"):
        with capsys.disabled():
            print(f"\n{said.rstrip()}")


@pytest.mark.sanitizers
@pytest.mark.timeout(900)
@pytest.mark.parametrize("test", [s for s in SIMULATIONS if s != "test_mutations"])
def test_simulation_sanitized(executables: dict[str, Path], test: str) -> None:
    run(executables, BUILDS["ubsan"], test, *FEWER.get(test, ()))
