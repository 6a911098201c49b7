from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_harness import Engine, Options


@pytest.fixture
def pool(pool_path: Path) -> Path:
    """Where the engines of one test have their pool, which the first of them creates."""
    return pool_path


@pytest.fixture
def start(tmp_path: Path, pool: Path) -> Iterator[Callable[..., Engine]]:
    """Starts engines on the test's pool; they are destroyed at its end, whatever happened.

    LMCache leaves threads behind that keep the process from ending if they are not.
    """
    engines: list[Engine] = []
    numbers = itertools.count(1)

    def start(**options: object) -> Engine:
        yaml_file = tmp_path / f"lmcache-{next(numbers)}.yaml"
        engines.append(Engine(yaml_file, pool, Options(**options)))
        return engines[-1]

    yield start
    for engine in reversed(engines):
        engine.close()
