"""What is the same for all backends of a run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: LMCache's and vLLM's own settings of whoever runs this must not get into what is measured.
_FOREIGN = ("LMCACHE_", "BELUGA_")

_QUIET = {
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_LOG_LEVEL": "WARNING",
    "LMCACHE_DISABLE_BANNER": "1",
    "PYTHONHASHSEED": "0",  # of which LMCache's hashes of a prompt depend
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Settings:
    """Sizes in bytes, times in seconds."""

    #: Folder of a model as Hugging Face writes it; config.json is enough with ``dummy`` weights.
    model: Path
    #: The interpreter that has vLLM, LMCache and this package.
    python: str
    #: CUDA_VISIBLE_DEVICES of each instance; empty strings without GPUs.
    gpus: tuple[str, ...]
    cpu: bool = False
    load_format: str = "dummy"
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 16384
    gpu_memory_utilization: float = 0.42
    kv_cache_bytes: int = 0
    #: Of instance 0 where another is asked for what it has stored; 0: as of all others.
    storing_kv_cache_bytes: int = 0
    block_size: int = 0
    eager: bool = True
    prefix_caching: bool = False
    #: Processes of an instance that take requests from HTTP and hand them to its engine.
    api_servers: int = 1
    vllm_args: tuple[str, ...] = ()
    #: Of LMCache's connector to its servers, over what a run needs.
    connector: dict[str, Any] = field(default_factory=dict)
    chunk: int = 256
    #: How LMCache hashes chunks, in process and in its server.
    hash_algorithm: str = "builtin"
    server_hash_algorithm: str = "blake3"
    #: Of each tier. A tier that instances cannot share exists once per instance that is asked.
    pool_bytes: int = 48 << 30
    #: Memory that LMCache in process has besides, to copy through.
    staging_bytes: int = 20 << 30
    prefault: bool = True
    #: Where pools, DAX files and local disks are made.
    memory: Path = Path("/dev/shm")
    disk: Path | None = None
    mooncake_protocol: str = "tcp"
    mooncake_device: str = ""
    first_port: int = 18500
    start_s: float = 300.0
    settle_s: float = 60.0
    #: A tier that got nothing for so long has all.
    quiet_s: float = 0.6

    def as_json(self) -> dict[str, Any]:
        """For the result file."""
        known = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }
        return known | {"kv_bytes_per_token": kv_bytes_per_token(self.model)}


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process of the benchmark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    search = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    here = Path(__file__).resolve().parent
    search += [str(here.parents[1] / "vllm" / "on_cpu"), str(here / "in_vllm")]
    return kept | _QUIET | {"PYTHONPATH": os.pathsep.join(search)} | more


def model_config(model: Path) -> dict[str, Any]:
    """The model's config.json."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    return config


def kv_bytes_per_token(model: Path, bytes_per_value: int = 2) -> int:
    """Of all layers, on one rank, without a quantised KV cache."""
    config = model_config(model)
    layers = int(config["num_hidden_layers"])
    if "kv_lora_rank" in config:  # latent attention: one vector for keys and values
        values = int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"])
        return layers * values * bytes_per_value
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    return 2 * layers * int(config.get("num_key_value_heads", heads)) * size * bytes_per_value
