"""What an operator sees of the backend next to what LMCache tells: log messages, a metric."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import CHUNK, Engine, prompt
from prometheus_client import REGISTRY

from lmcache_beluga import Pool
from lmcache_beluga.engines.attached_gauge import NAME

SPEAK = """
import logging, sys
if sys.argv[1] == "application":
    logging.basicConfig(format="%(name)s says %(message)s", level=logging.INFO)
from lmcache_beluga.engines.trouble import log_as_lmcache, logger
for _ in range(2):
    log_as_lmcache()
logger.info("of interest")
logger.warning("of weight")
"""


def spoken(by: str, level: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", SPEAK, by],
        env={**os.environ, "LMCACHE_LOG_LEVEL": level},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line for line in result.stderr.splitlines() if " of " in line]


@pytest.mark.parametrize(
    ("level", "kinds"), [("INFO", ["INFO", "WARNING"]), ("ERROR", ["WARNING"])]
)
def test_messages_look_like_lmcaches(level: str, kinds: list[str]) -> None:
    """As LMCACHE_LOG_LEVEL says; what is wrong with the pool is never hidden."""
    lines = spoken("lmcache", level)
    assert len(lines) == len(kinds)
    assert all(f"LMCache {kind}:" in line for kind, line in zip(kinds, lines, strict=True))


def test_messages_of_an_application_that_has_its_own_way() -> None:
    lines = spoken("application", "INFO")
    assert lines == ["lmcache_beluga says of interest", "lmcache_beluga says of weight"]


def attached(model: str) -> float | None:
    return REGISTRY.get_sample_value(NAME, {"model_name": model, "worker_id": "0"})


def test_metric_tells_whether_the_pool_is_used(start: Callable[..., Engine], pool: Path) -> None:
    start(model="without", beluga={"beluga.size": "lots"})
    assert attached("without") == 0
    engine = start(model="with")
    assert attached("with") == 1
    Pool.format(pool, size=pool.stat().st_size, force=True)
    assert engine.lookup(prompt(CHUNK, seed=1), "request") == 0
    assert attached("with") == 0


def test_metric_of_an_engine_that_ends(start: Callable[..., Engine]) -> None:
    engine = start(model="ended")
    assert attached("ended") == 1
    engine.close()
    assert attached("ended") == 0
