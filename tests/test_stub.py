"""The committed type stub of the native module says what the module is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lmcache_beluga

STUB = Path(lmcache_beluga.__file__).with_name("_native.pyi")


def test_stub_is_that_of_the_module(tmp_path: Path) -> None:
    fresh = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-m", "lmcache_beluga._native"]
    subprocess.run([*command, "-q", "-o", str(fresh)], check=True)
    assert fresh.read_text() == STUB.read_text(), (
        "bindings changed: run `python -m nanobind.stubgen -m lmcache_beluga._native "
        "-o lmcache_beluga/_native.pyi`"
    )
