"""How long to fuzz."""

from __future__ import annotations

import os

import pytest

_DEFAULT_SECONDS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz")
    group.addoption("--fuzz-seconds", type=int, help="seconds for each target (FUZZ_SECONDS)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The time limit grows with the time asked for; the first test also compiles."""
    for item in items:
        if "built" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(900 + 2 * _seconds(config)))


@pytest.fixture
def fuzz_seconds(request: pytest.FixtureRequest) -> int:
    """Seconds for each target."""
    return _seconds(request.config)


def _seconds(config: pytest.Config) -> int:
    # The option is only known when tests/fuzz is among pytest's arguments; the variable always.
    chosen = config.getoption("--fuzz-seconds", default=None) or os.environ.get("FUZZ_SECONDS")
    return _DEFAULT_SECONDS if chosen is None else int(chosen)
