"""What the benchmark tells vLLM and LMCache for each backend, and what it says is missing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lmcache.cli.commands.server import ServerCommand
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.storage_backend.connector.mooncakestore_connector import MooncakeStoreConfig
from serving.backends import BACKENDS, Backend
from serving.backends.remote import Mooncake, Redis
from serving.engine import EngineSetup, command
from serving.ports import ports_from
from serving.settings import Settings, kv_bytes_per_token

from lmcache_beluga.config import Settings as PoolSettings

IN_PROCESS = ["cpu", "beluga", "dax", "disk", "redis", "resp", "mooncake", "lmserver"]
THROUGH_SERVERS = ["beluga-mp", "lmcache-mp"]
REMOTE = {"redis": "redis", "mooncake": "mooncakestore", "lmserver": "lm"}


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> Settings:
    memory = tmp_path / "memory"
    memory.mkdir()
    return Settings(
        model=model,
        python=sys.executable,
        gpus=("0", "1"),
        chunk=128,
        max_model_len=4096,
        pool_bytes=1 << 30,
        staging_bytes=1 << 29,
        memory=memory,
    )


@pytest.fixture
def never_started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], dict[str, str]]]:
    """Processes that would have been started: name, command, environment."""
    asked: list[tuple[str, list[str], dict[str, str]]] = []

    class Nothing:
        def __init__(
            self, name: str, group: str, line: list[str], folder: Path, environment: dict[str, str]
        ) -> None:
            asked.append((name, line, environment))

        def end(self) -> None:
            pass

    monkeypatch.setattr("serving.backends.remote.Child", Nothing)
    monkeypatch.setattr("serving.backends.pool.Child", Nothing)
    return asked


def started(name: str, settings: Settings, folder: Path) -> Backend:
    (folder / name).mkdir(parents=True)
    backend = BACKENDS[name](settings, folder / name, ports_from(0), (0, 1))
    backend.start()
    return backend


def file_of(setup: EngineSetup) -> dict[str, Any]:
    assert setup.lmcache is not None
    return dict(setup.lmcache)


@pytest.mark.parametrize("name", IN_PROCESS)
def test_lmcache_reads_what_it_is_told(
    name: str, settings: Settings, tmp_path: Path, never_started: Any
) -> None:
    backend = started(name, settings, tmp_path)
    setup = backend.setup(0)
    told = file_of(setup)
    assert setup.kv_transfer is not None
    assert setup.kv_transfer["kv_connector"] == "LMCacheConnectorV1"
    config = LMCacheEngineConfig.from_dict(told)
    unknown = [key for key in told if key not in vars(config) and not hasattr(config, key)]
    assert unknown == []
    assert config.chunk_size == 128
    assert config.pre_caching_hash_algorithm == "builtin"
    # A hit must come from the tier, not from memory before it.
    assert config.local_cpu is (name == "cpu")
    if name in REMOTE:
        assert str(config.remote_url).startswith(f"{REMOTE[name]}://127.0.0.1:")
    backend.close()
    assert list(settings.memory.iterdir()) == []


def test_the_pool_is_the_one_that_users_configure(
    settings: Settings, tmp_path: Path, never_started: Any
) -> None:
    backend = started("beluga", settings, tmp_path)
    files = [file_of(backend.setup(instance)) for instance in (0, 1)]
    assert files[0] == files[1]
    extra = files[0]["extra_config"]
    assert extra["storage_plugin.beluga.class_name"] == "BelugaBackend"
    pool = PoolSettings.from_extra_config(extra)
    assert (pool.size, pool.prefault) == (1 << 30, True)
    assert [Path(path).parent for path in pool.pool] == [settings.memory]


def test_private_tiers_have_nothing_in_common(
    settings: Settings, tmp_path: Path, never_started: Any
) -> None:
    for name, key in (("dax", "extra_config"), ("disk", "local_disk")):
        backend = started(name, settings, tmp_path)
        assert file_of(backend.setup(0))[key] != file_of(backend.setup(1))[key]
        backend.close()
        assert not BACKENDS[name].shared


def test_servers_see_all_gpus_and_engines_reach_their_own(
    settings: Settings, tmp_path: Path, never_started: list[Any]
) -> None:
    backend = started("beluga-mp", settings, tmp_path)
    assert [name for name, _, _ in never_started] == ["server-0", "server-1"]
    ports = []
    for number, (_, line, environment) in enumerate(never_started):
        assert line[1:4] == ["-m", "lmcache_beluga", "lmcache-server"]
        assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert environment["BELUGA_PREFAULT"] == "true"
        assert line[line.index("--chunk-size") + 1] == "128"
        transfer = backend.setup(number).kv_transfer
        assert transfer is not None and transfer["kv_connector"] == "LMCacheMPConnector"
        ports.append(str(transfer["kv_connector_extra_config"]["lmcache.mp.port"]))
        assert line[line.index("--port") + 1] == ports[-1]
    assert len(set(ports)) == 2
    pools = {line[line.index("--pool") + 1] for _, line, _ in never_started}
    assert len(pools) == 1, "one pool for both"


@pytest.mark.parametrize("name", ["beluga-mp", "lmcache-mp"])
def test_engines_tell_the_connector_what_they_were_told(
    name: str, settings: Settings, tmp_path: Path, never_started: list[Any]
) -> None:
    """But not where their server is."""
    told = {"lmcache.mp.eager_prefetch": True, "lmcache.mp.port": 1}
    backend = started(name, dataclasses.replace(settings, connector=told), tmp_path)
    transfer = backend.setup(0).kv_transfer
    assert transfer is not None
    extra = transfer["kv_connector_extra_config"]
    assert extra["lmcache.mp.eager_prefetch"] is True
    assert extra["lmcache.mp.port"] != 1


def test_lmcaches_own_server_is_one_for_both(
    settings: Settings, tmp_path: Path, never_started: list[Any]
) -> None:
    backend = started("lmcache-mp", settings, tmp_path)
    assert len(never_started) == 1
    assert backend.setup(0) == backend.setup(1)
    line = never_started[0][1]
    assert line[line.index("--l1-size-gb") + 1] == "1.0"
    assert "lmcache_beluga" not in line


@pytest.mark.parametrize("name", THROUGH_SERVERS)
def test_lmcache_knows_the_servers_options(
    name: str, settings: Settings, tmp_path: Path, never_started: list[Any]
) -> None:
    started(name, settings, tmp_path)
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool")
    parser.add_argument("--pool-size")
    ServerCommand().add_arguments(parser)
    line = never_started[0][1]
    parser.parse_args([entry for entry in line[4:] if entry != "server"])


def test_mooncake_gets_its_network(settings: Settings, tmp_path: Path, never_started: Any) -> None:
    rdma = dataclasses.replace(settings, mooncake_protocol="rdma", mooncake_device="mlx5_0")
    backend = started("mooncake", rdma, tmp_path)
    config = LMCacheEngineConfig.from_dict(file_of(backend.setup(0)))
    setup = MooncakeStoreConfig.load_from_lmcache_config(config).setup_config
    assert (setup["protocol"], setup["device_name"]) == ("rdma", "mlx5_0")
    assert setup["master_server_addr"] == setup["master_server_address"]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_with_graphs_lmcaches_connector_is_mended_but_for_the_pool(
    settings: Settings, tmp_path: Path, never_started: Any, name: str
) -> None:
    """Nothing that is not loaded can be compared; the pool has to see to it itself."""
    graphs = dataclasses.replace(settings, eager=False)
    for given, mended in ((settings, False), (graphs, name != "beluga")):
        backend = started(name, given, tmp_path / ("eager" if given.eager else "graphs"))
        transfer = backend.setup(0).kv_transfer
        assert transfer is not None
        assert ("kv_connector_module_path" in transfer) == mended, given.eager
        backend.close()


def test_vllm_differs_by_its_connector_alone(settings: Settings) -> None:
    alone = command(settings, 1)
    cached = command(settings, 1, {"kv_connector": "x"})
    assert cached == [*alone, "--kv-transfer-config", json.dumps({"kv_connector": "x"})]
    assert "--no-enable-prefix-caching" in alone
    assert alone[alone.index("--load-format") + 1] == "dummy"


def test_several_api_servers_need_the_command(settings: Settings) -> None:
    """The module that one API server runs takes the option, and starts one all the same."""
    line = command(dataclasses.replace(settings, api_servers=4), 1)
    assert line[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", str(settings.model)]
    assert line[line.index("--api-server-count") + 1] == "4"
    assert "--api-server-count" not in command(settings, 1)


def test_kv_of_a_token(model: Path) -> None:
    assert kv_bytes_per_token(model) == 2 * 2 * 2 * 64 * 2
    latent = {"num_hidden_layers": 3, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    (model / "config.json").write_text(json.dumps(latent))
    assert kv_bytes_per_token(model) == 3 * 576 * 2


def test_missing_software_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt install redis-server" in Redis.missing(settings)
    assert "mooncake-transfer-engine" in Mooncake.missing(settings)
    assert BACKENDS["none"].missing(settings) == ""
