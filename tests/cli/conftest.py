"""A small pool with chunks of two models, and a way to run the command on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sample_pool import RECORDS, SIZE, Run

from lmcache_beluga import Pool
from lmcache_beluga.cli.root import beluga


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BELUGA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: object, **options: Any) -> Result:
        return CliRunner().invoke(beluga, [str(a) for a in arguments], **options)

    return invoke


@pytest.fixture
def pool_path(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    with Pool.open(path, size=SIZE) as pool:
        for depth, (record, size) in enumerate(RECORDS.items()):
            pool.put(record, bytes([depth]) * size, depth=depth)
    return path
