"""Builds and runs the C++ tests: as they are, and under the sanitizers.

The build directories are kept under ``build/``, so that a second run compiles only what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Release keeps the tests' own checks: they do not depend on NDEBUG.
BUILDS = {
    "release": ("Release", ""),
    "asan": ("RelWithDebInfo", "address,undefined"),
    "tsan": ("RelWithDebInfo", "thread"),
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("build", BUILDS)
def test_native(build: str) -> None:
    build_type, sanitizers = BUILDS[build]
    directory = ROOT / "build" / f"native-{build}"
    configure = ["cmake", "-S", str(ROOT), "-B", str(directory), "-DBELUGA_NATIVE_TESTS=ON"]
    configure += [f"-DCMAKE_BUILD_TYPE={build_type}", f"-DBELUGA_SANITIZE={sanitizers}"]
    # Line tables are enough for a sanitizer's report, and compile in half the time.
    configure += ["-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1"]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    jobs = str(len(os.sched_getaffinity(0)))
    _run(configure)
    _run(["cmake", "--build", str(directory), "-j", jobs])
    _run(["ctest", "--test-dir", str(directory), "--output-on-failure", "--timeout", "300"])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sys.stdout.write(done.stdout[-20_000:])
    assert done.returncode == 0, f"{' '.join(command)} failed; its output is above"
