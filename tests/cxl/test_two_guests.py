"""Two QEMU guests on one CXL memory device, as integration/cxl/README.md tells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "integration/cxl/two_guests.py"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("visibility", ["noncoherent", "coherent"])
def test_every_promise_is_kept(visibility: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--visibility", visibility, "--json", result],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(result.read_text())
    assert told["failure"] is None
    assert [boot["guest"] for boot in told["boots"]] == ["a", "b", "a"]
