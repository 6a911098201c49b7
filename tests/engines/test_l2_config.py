"""What an operator writes into adapter_params."""

from __future__ import annotations

from pathlib import Path

import pytest
from l2_harness import create, spec

from lmcache_beluga import BelugaL2AdapterConfig, PoolMissingError, SettingError
from lmcache_beluga.config import SETTINGS


def test_settings_by_their_names() -> None:
    config = BelugaL2AdapterConfig.from_dict({"pool": ["/dev/dax0.0", "/dev/dax1.0"], "host_id": 0})
    assert config.settings.pool == ("/dev/dax0.0", "/dev/dax1.0")


def test_the_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELUGA_POOL", "/dev/dax7.0")
    assert BelugaL2AdapterConfig.from_dict({}).settings.pool == ("/dev/dax7.0",)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "beluga.pool is not set"),
        ({"pol": "/x"}, "did you mean pool"),
        ({"pool": "/x", "size": "lots"}, "give a size such as 64GiB"),
        ({"pool": "/x", "lease": "1ms"}, "lease (adapter_params)"),
    ],
)
def test_wrong_parameters(params: dict[str, object], message: str) -> None:
    """A SettingError is a ValueError, which is what LMCache expects of a configuration."""
    with pytest.raises(SettingError) as caught:
        BelugaL2AdapterConfig.from_dict(params)
    assert message in str(caught.value) and isinstance(caught.value, ValueError)


def test_help_has_every_setting() -> None:
    text = BelugaL2AdapterConfig.help()
    assert all(f"- {setting.name} (" in text for setting in SETTINGS)


def test_a_pool_that_is_not_there(pool: Path) -> None:
    with pytest.raises(PoolMissingError, match=r"beluga\.size"):
        create(spec(pool, size=None))


def test_a_server_copies_with_more_threads_unless_told(pool: Path) -> None:
    for params, threads in (({"copy_threads": 3}, 3), ({}, None)):
        adapter = create(spec(pool, **params))
        found = adapter._pool._native.copy_threads
        adapter.close()
        assert found == threads or (threads is None and 1 <= found <= 16)
