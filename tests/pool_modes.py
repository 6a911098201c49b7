"""Pools of either visibility: tests with the fixture ``visibility`` run once with each.

It sets what a format does when the test does not say; the processes that the test starts inherit
it. A noncoherent pool then has room for several hosts, so that every lookup and every lease minds
the others.
"""

from __future__ import annotations

import functools
import os

import pytest

from lmcache_beluga import pool
from lmcache_beluga.pool_arguments import FormatArguments

VISIBILITIES = ("coherent", "noncoherent")
HOSTS = 3
_VARIABLE = "TEST_OF_BELUGA_VISIBILITY"


def use(visibility: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_VARIABLE, visibility)
    monkeypatch.setattr(pool, "FormatArguments", _arguments(visibility))


def inherit() -> None:
    """In a process that a test has started."""
    if visibility := os.environ.get(_VARIABLE):
        pool.FormatArguments = _arguments(visibility)  # type: ignore[misc, assignment]


def _arguments(visibility: str) -> functools.partial[FormatArguments]:
    hosts = 1 if visibility == "coherent" else HOSTS
    return functools.partial(FormatArguments, visibility=visibility, max_hosts=hosts)
