"""vLLM itself, from a virtual environment of its own: see ``install`` in this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Pair, Serving

from lmcache_beluga import Pool

HERE = Path(__file__).parent
VARIABLE = "BELUGA_TEST_VLLM"
LOG_TAIL = 5000

_serving: list[Serving] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))  # the first one starts the instances


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = yield
    if report.failed:
        for log in (log for serving in _serving for log in sorted(serving.folder.glob("*.log"))):
            said = log.read_text(errors="replace")
            report.sections.append((f"end of {log.name}", said[-LOG_TAIL:]))
    return report


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter of an environment with vLLM, LMCache and this package."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(
            "no vLLM: make it with tests/vllm_serve/install .venv-vllm, and set "
            f"{VARIABLE}=$PWD/.venv-vllm/bin/python"
        )
    command = [python, "-c", "import importlib.util as u; print(u.find_spec('lmcache_beluga'))"]
    found = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, check=True)
    assert "None" not in found.stdout, f"{VARIABLE}={python} has no lmcache_beluga"
    return python


@pytest.fixture(scope="session")
def serving(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Starts instances; what is left of them ends with the run."""
    shm = Path("/dev/shm") / f"beluga-test-{os.getpid()}-vllm"
    shm.mkdir()
    found = Serving(vllm_python, tmp_path_factory.mktemp("vllm"), shm / "pool")
    _serving.append(found)
    yield found
    found.close()
    _serving.remove(found)
    for pool in shm.glob("*pool"):
        Pool.open(pool).close()  # the last one to leave removes what killed instances left
    shutil.rmtree(shm)


@pytest.fixture(scope="session")
def pair_as_it_is(serving: Serving) -> Pair:
    return Pair(serving)


@pytest.fixture
def pair(pair_as_it_is: Pair) -> Pair:
    """Two instances on one pool; both serve, whatever the last test has left of them."""
    pair_as_it_is.restore()
    return pair_as_it_is
