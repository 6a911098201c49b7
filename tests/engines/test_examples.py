"""The configurations in integration/lmcache are what LMCache and the backend accept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from engine_harness import CHUNK, Engine, prompt
from lmcache.v1.config import LMCacheEngineConfig

from lmcache_beluga import Settings

EXAMPLES = sorted((Path(__file__).parents[2] / "integration" / "lmcache").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_engine_runs_with_example(start: Callable[..., Engine], example: Path) -> None:
    config = LMCacheEngineConfig.from_file(str(example))
    assert Settings.from_extra_config(config.extra_config, {}).pool
    written = yaml.safe_load(example.read_text())
    extra = written.pop("extra_config")
    # On this machine: a small pool, and chunks as the test's connector has them.
    extra |= {"beluga.size": "64MiB", "beluga.extent_size": "4MiB"}
    del extra["beluga.pool"]
    written["chunk_size"] = CHUNK
    written["max_local_cpu_size"] = min(written["max_local_cpu_size"], 0.05)
    engine = start(plugin=written["storage_plugins"][0], lmcache=written, beluga=extra)
    tokens = prompt(2 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    engine.expect_hit(tokens, kv, "request")
    engine.assert_clean()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
