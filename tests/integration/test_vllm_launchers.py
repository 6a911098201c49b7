"""What integration/vllm tells an operator to use is accepted by what is to read it."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from lmcache.cli.commands.server import ServerCommand
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.distributed.config import parse_args_to_config

from lmcache_beluga import Settings

FOLDER = Path(__file__).parents[2] / "integration" / "vllm"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
KUBERNETES = "1.32"

#: Of `vllm serve` in vLLM 0.25.1: its vllm/engine/arg_utils.py and entrypoints/openai/cli_args.py.
VLLM_FLAGS = {
    "--block-size",
    "--gpu-memory-utilization",
    "--host",
    "--kv-transfer-config",
    "--max-model-len",
    "--port",
    "--tensor-parallel-size",
}
#: Of vLLM 0.25.1's KVTransferConfig; keys of LMCache 0.5.6's LMCacheMPConnector.
ROLES = {"kv_both", "kv_consumer", "kv_producer"}
CONNECTORS: dict[str, set[str]] = {
    "LMCacheConnectorV1": set(),
    "LMCacheMPConnector": {"lmcache.mp.host", "lmcache.mp.port"},
}


def is_lmcache(path: Path) -> bool:
    return "storage_plugins" in (yaml.safe_load_all(path.read_text()).__next__() or {})


LMCACHE = sorted(path for path in FOLDER.glob("*.yaml") if is_lmcache(path))


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.mark.parametrize("path", LMCACHE, ids=lambda path: path.stem)
def test_lmcache_and_the_backend_accept(path: Path) -> None:
    config = LMCacheEngineConfig.from_file(str(path))
    config.validate()
    written = yaml.safe_load(path.read_text())
    known = vars(config)
    assert {name for name in written if name not in known} == set()
    assert Settings.from_extra_config(config.extra_config, {}).pool
    (plugin,) = config.storage_plugins
    module = importlib.import_module(config.extra_config[f"storage_plugin.{plugin}.module_path"])
    assert hasattr(module, config.extra_config[f"storage_plugin.{plugin}.class_name"])


def test_there_is_one_for_each_case() -> None:
    names = {"hosts", "mla", "one-machine", "production-stack-lmcache", "remote-below"}
    assert {path.stem for path in LMCACHE} == names


def test_compose_file() -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(FOLDER / "compose.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    services = documents("compose.yaml")[0]["services"]
    for service in services.values():
        assert service["ipc"] == "host"
        assert service["ulimits"]["memlock"] == -1
        assert service["environment"]["PYTHONHASHSEED"] == "0"
    check_server(services["lmcache"]["command"])
    for name in ("vllm-0", "vllm-1"):
        check_vllm(services[name]["command"])


def test_kubernetes_manifests() -> None:
    found = documents("kubernetes.yaml")
    assert [d["kind"] for d in found] == ["ConfigMap", "DaemonSet", "Deployment", "Service"]
    for document in found:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    server, vllm = (d["spec"]["template"]["spec"] for d in found[1:3])
    assert server["hostIPC"] and vllm["hostIPC"]
    (container,) = server["containers"]
    (line,) = container["args"]
    check_server(shlex.split(line)[3:])
    (container,) = vllm["containers"]
    check_vllm(container["args"])


def test_production_stack_values() -> None:
    (values,) = documents("production-stack.yaml")
    (model,) = values["servingEngineSpec"]["modelSpec"]
    environment = {variable["name"]: variable["value"] for variable in model["env"]}
    assert environment["PYTHONHASHSEED"] == "0"
    mounts = {mount["name"]: mount["mountPath"] for mount in model["extraVolumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in model["extraVolumes"]}
    config = Path(environment["LMCACHE_CONFIG_FILE"])
    assert str(config.parent) == mounts["lmcache-beluga"]
    settings = Settings.from_extra_config(documents(config.name)[0]["extra_config"], {})
    assert settings.control_dir == mounts["beluga"]
    assert all(Path(path).parent == Path(mounts["beluga"]) for path in settings.pool)
    check_vllm([model["modelURL"], *model["vllmConfig"]["extraArgs"]])


def commands() -> list[list[str]]:
    """Of the README, without variables before them, and with $KV filled in."""
    found: list[list[str]] = []
    for block in re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        # A lexer of its own for each block: quoted JSON goes over lines.
        kv = ""
        for line in re.split(r"\n(?!\s)", block.replace("\\\n", " ").strip()):
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                if words[0].startswith("KV="):
                    kv = words[0].removeprefix("KV=")
                words.pop(0)
            if words:
                found.append([kv if word == "$KV" else word for word in words])
    return found


def test_commands_of_the_readme() -> None:
    seen: list[str] = []
    for command in commands():
        if command[:2] == ["vllm", "serve"]:
            check_vllm(command[2:])
        elif command[:2] == ["beluga", "lmcache-server"]:
            check_server(command[2:])
        seen.append(" ".join(command[:2]))
    assert seen.count("vllm serve") == 6
    assert seen.count("beluga lmcache-server") == 3


def test_l2_adapters_of_the_readme() -> None:
    rows = re.findall(r'^\| .* \| `(\{"type".*\})` \|$', README, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        check_server(["--pool", "/dev/dax0.0", "--l2-adapter", row])


def test_files_that_are_linked_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        if "://" not in target:
            assert (FOLDER / target).exists(), target


def check_server(arguments: list[str]) -> None:
    """By LMCache's own parser, after the options of ``beluga lmcache-server``."""
    ours = argparse.ArgumentParser(exit_on_error=False)
    for option in ("--pool", "--pool-size", "--host-id"):
        ours.add_argument(option)
    known, rest = ours.parse_known_args(arguments)
    assert known.pool.startswith("/dev/")
    parser = argparse.ArgumentParser()
    ServerCommand().add_arguments(parser)
    options = parser.parse_args([*rest, "--l1-size-gb", "1", "--eviction-policy", "noop"])
    parse_args_to_config(options)


def check_vllm(arguments: list[str]) -> None:
    flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    assert flags <= VLLM_FLAGS
    joined = [part for word in arguments for part in word.split("=", 1) if word.startswith("--")]
    words = joined if len(joined) > len(flags) else arguments
    config = json.loads(words[words.index("--kv-transfer-config") + 1])
    assert config["kv_role"] in ROLES
    assert config["kv_load_failure_policy"] == "recompute"
    extra = config.get("kv_connector_extra_config", {})
    assert set(extra) == CONNECTORS[config["kv_connector"]]
