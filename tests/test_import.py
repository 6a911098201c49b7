"""Importing the package is cheap, and its public names load when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lmcache_beluga
from lmcache_beluga import errors


def modules_after(code: str) -> set[str]:
    """Names of all modules loaded in a fresh interpreter after ``code``."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.__stdout__)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import lmcache_beluga",
        "from lmcache_beluga import BelugaError, SettingError, Settings; Settings.from_environ({})",
        "import lmcache_beluga.config",
    ],
)
def test_import_pulls_in_nothing_heavy(code: str) -> None:
    loaded = modules_after(code)
    heavy = {"torch", "lmcache", "numpy", "msgpack", "click", "rich", "lmcache_beluga._native"}
    assert not loaded & heavy


def test_pool_pulls_in_neither_torch_nor_lmcache() -> None:
    assert not modules_after("from lmcache_beluga import Pool") & {"torch", "lmcache"}


def test_every_public_name_loads() -> None:
    for name in lmcache_beluga.__all__:
        assert getattr(lmcache_beluga, name) is not None
    assert set(lmcache_beluga.__all__) <= set(dir(lmcache_beluga))


def test_every_error_is_exported() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined <= set(lmcache_beluga.__all__)


def test_the_backend_is_found_as_lmcache_looks_for_it() -> None:
    import importlib

    backend = getattr(importlib.import_module("lmcache_beluga"), "BelugaBackend")  # noqa: B009
    assert backend.__name__ == "BelugaBackend"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Cache'"):
        lmcache_beluga.Cache  # noqa: B018
