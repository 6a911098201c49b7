"""Options of the stress tests, and their progress."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from .schedule import Schedule

_DEFAULT_KILLS = 1000
_DEFAULT_STEPS = 80
_DEFAULT_PAUSES = 16
_DEFAULT_FLIPS = 6


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stress")
    group.addoption("--kills", type=int, help="processes to kill (STRESS_KILLS)")
    group.addoption("--steps", type=int, help="trials of a kill at one instruction (STRESS_STEPS)")
    group.addoption("--pauses", type=int, help="hosts to stop past dead_after (STRESS_PAUSES)")
    group.addoption("--flips", type=int, help="seconds to flip bits in each case (STRESS_FLIPS)")
    group.addoption("--report", type=Path, help="where test_hosts.py writes its figures, as JSON")
    group.addoption("--seed", type=int, help="seed of the schedule (STRESS_SEED)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The time limit grows with the number of kills."""
    for item in items:
        if "schedule" in getattr(item, "fixturenames", ()):
            seconds = (
                600 + _kills(config) + 5 * _steps(config) + 20 * _pauses(config) + _flips(config)
            )
            item.add_marker(pytest.mark.timeout(seconds))


@pytest.fixture
def schedule(request: pytest.FixtureRequest) -> Iterator[Schedule]:
    """What to do; its seed is shown, and shown again when the test fails."""
    config = request.config
    seed = _chosen(config, "--seed", "STRESS_SEED")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    capture = config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"  [seed {seed}] {line}", flush=True)

    print(f"seed {seed}: replay with --seed {seed} or STRESS_SEED={seed}")
    with capture.global_and_fixture_disabled():
        print(f"\n{request.node.name}: seed {seed}")
    report = config.getoption("--report", default=None)
    yield Schedule(seed, _kills(config), _steps(config), _pauses(config), say, report)


@pytest.fixture
def flip_seconds(request: pytest.FixtureRequest) -> int:
    """How long to flip bits."""
    return _flips(request.config)


def _flips(config: pytest.Config) -> int:
    return _chosen(config, "--flips", "STRESS_FLIPS") or _DEFAULT_FLIPS


def _kills(config: pytest.Config) -> int:
    return _chosen(config, "--kills", "STRESS_KILLS") or _DEFAULT_KILLS


def _steps(config: pytest.Config) -> int:
    return _chosen(config, "--steps", "STRESS_STEPS") or _DEFAULT_STEPS


def _pauses(config: pytest.Config) -> int:
    return _chosen(config, "--pauses", "STRESS_PAUSES") or _DEFAULT_PAUSES


def _chosen(config: pytest.Config, option: str, variable: str) -> int | None:
    # Options are only known when tests/stress is among pytest's arguments; variables always.
    value = config.getoption(option, default=None) or os.environ.get(variable)
    return None if value is None else int(value)
