from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Engine, Options

HOSTS = 4


@pytest.fixture
def pool(pool_path: Path) -> Path:
    """Where the engines of one test have their pool, which the first of them creates."""
    return pool_path


HostOf = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(params=["one host", "hosts"])
def host_of(request: pytest.FixtureRequest) -> HostOf:
    """Settings of a test's next engine: all engines are one host, or each is a host of its own, up
    to four, on a pool that keeps nothing coherent between them."""
    numbers = itertools.count()

    def settings(own: dict[str, Any]) -> dict[str, Any]:
        if request.param == "one host":
            return own
        shared = {"beluga.visibility": "noncoherent", "beluga.max_hosts": HOSTS}
        times = {"beluga.heartbeat": "20ms"}
        return {**shared, **times, "beluga.host_id": next(numbers) % HOSTS, **own}

    return settings


@pytest.fixture
def start(tmp_path: Path, pool: Path, host_of: HostOf) -> Iterator[Callable[..., Engine]]:
    """Starts engines on the test's pool; they are destroyed at its end, whatever happened.

    LMCache leaves threads behind that keep the process from ending if they are not.
    """
    engines: list[Engine] = []
    numbers = itertools.count(1)

    def start(**options: Any) -> Engine:
        options["beluga"] = host_of(options.get("beluga", {}))
        yaml_file = tmp_path / f"lmcache-{next(numbers)}.yaml"
        engines.append(Engine(yaml_file, pool, Options(**options)))
        return engines[-1]

    yield start
    for engine in reversed(engines):
        engine.close()
