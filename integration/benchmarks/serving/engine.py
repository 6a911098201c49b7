"""One ``vllm serve``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .child import Child
from .counters import totals
from .ports import HOST, answers, get
from .settings import Settings, child_environment

MODEL_NAME = "model"

IN_PROCESS = {
    "kv_connector": "LMCacheConnectorV1",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
#: LMCache 0.5.6 has no connector for CPUs in process: see integration/vllm/on_cpu.
IN_PROCESS_ON_CPU = IN_PROCESS | {"kv_connector_module_path": "lmcache_on_cpu"}


#: LMCache 0.5.6 loads nothing before vLLM replays graphs: see in_vllm.
IN_PROCESS_BEFORE_GRAPHS = IN_PROCESS | {"kv_connector_module_path": "lmcache_before_graphs"}


def in_process(settings: Settings, mended: bool = True) -> dict[str, Any]:
    """vLLM's ``--kv-transfer-config`` for LMCache in process.

    ``mended``: for what cannot be measured as it is; False where the backend itself sees to it.
    """
    if settings.cpu:
        return IN_PROCESS_ON_CPU
    return IN_PROCESS_BEFORE_GRAPHS if mended and not settings.eager else IN_PROCESS


def through_server(settings: Settings, port: int, module: str = "") -> dict[str, Any]:
    """vLLM's ``--kv-transfer-config`` for a server of LMCache's on this machine.

    ``module``: that has the connector, where it is not vLLM's own.
    """
    there = {"lmcache.mp.host": f"tcp://{HOST}", "lmcache.mp.port": port}
    return IN_PROCESS | {
        "kv_connector": "LMCacheMPConnector",
        **({"kv_connector_module_path": module} if module else {}),
        "kv_connector_extra_config": settings.connector | there,
    }


@dataclass(frozen=True)
class EngineSetup:
    """What a backend wants of one instance."""

    #: None: vLLM alone.
    kv_transfer: Mapping[str, Any] | None = None
    #: LMCache's file; None: it needs none.
    lmcache: Mapping[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What an instance has counted so far, in tokens."""

    prompt: int
    #: Loaded through its connector, and found in its own GPU memory.
    loaded: int
    local: int


class Engine:
    """Started without waiting for it.

    Args:
        number: of the instance, from 0.
        folder: for its log and LMCache's file.
    """

    def __init__(
        self, settings: Settings, number: int, port: int, setup: EngineSetup, folder: Path
    ) -> None:
        self.number, self.port = number, port
        environment = dict(setup.environment)
        if setup.lmcache is not None:
            file = folder / f"lmcache-{number}.yaml"
            file.write_text(yaml.safe_dump(dict(setup.lmcache), sort_keys=False))
            environment["LMCACHE_CONFIG_FILE"] = str(file)
        # Where LMCache's metrics go; else instances would share one folder.
        metrics = folder / f"metrics-{number}"
        metrics.mkdir(exist_ok=True)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        if settings.gpus[number]:
            environment["CUDA_VISIBLE_DEVICES"] = settings.gpus[number]
        if settings.cpu:
            environment |= {
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_CPU_KVCACHE_SPACE": str(max(1, settings.kv_cache_bytes >> 30)),
            }
        self.child = Child(
            f"vllm-{number}",
            "vllm",
            command(settings, port, setup.kv_transfer),
            folder,
            child_environment(**environment),
        )

    @property
    def url(self) -> str:
        """Of its HTTP interface."""
        return f"http://{HOST}:{self.port}"

    def wait(self, deadline: float) -> None:
        """Until it serves; raises ChildError."""
        self.child.wait_until(lambda: answers(self.port), deadline)

    def seen(self) -> Seen:
        """Its counters."""
        found = totals(get(self.port, "/metrics")[1])
        return Seen(
            prompt=int(found.get("vllm:prompt_tokens_total", 0)),
            loaded=int(found.get("vllm:external_prefix_cache_hits_total", 0)),
            local=int(found.get("vllm:prefix_cache_hits_total", 0)),
        )


def command(
    settings: Settings, port: int, kv_transfer: Mapping[str, Any] | None = None
) -> list[str]:
    """``vllm serve``, the same for all backends but for its connector.

    By the module that it runs, which starts one API server: the command asks for the version of a
    package named vllm, which builds for CPUs do not have. Several need the command.
    """
    model = str(settings.model)
    if settings.api_servers == 1:
        line = [settings.python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    else:
        line = [settings.python, "-m", "vllm.entrypoints.cli.main", "serve", model]
        line += ["--api-server-count", str(settings.api_servers)]
    line += ["--host", HOST, "--port", str(port), "--served-model-name", MODEL_NAME]
    line += ["--skip-tokenizer-init", "--generation-config", "vllm", "--seed", "0"]
    line += ["--dtype", "bfloat16", "--load-format", settings.load_format]
    line += ["--max-model-len", str(settings.max_model_len)]
    line += ["--max-num-seqs", str(settings.max_num_seqs)]
    line += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    line += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    line += ["--enable-prefix-caching" if settings.prefix_caching else "--no-enable-prefix-caching"]
    if settings.eager:
        line += ["--enforce-eager"]
    if settings.block_size:
        line += ["--block-size", str(settings.block_size)]
    if not settings.cpu:
        line += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
        if settings.kv_cache_bytes:
            line += ["--kv-cache-memory-bytes", str(settings.kv_cache_bytes)]
    if kv_transfer is not None:
        line += ["--kv-transfer-config", json.dumps(dict(kv_transfer))]
    return [*line, *settings.vllm_args]
