"""What the README shows works as shown."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from lmcache_beluga import errors
from lmcache_beluga.config import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_example_runs(pool_path: Path) -> None:
    (example,) = blocks("python")
    assert example.count('"/dev/shm/example.pool"') == 1
    code = example.replace("/dev/shm/example.pool", str(pool_path))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "'chunks': 0" in result.stdout


def test_the_gpu_example_runs(pool_path: Path) -> None:
    """On a GPU; elsewhere, what it imports is there."""
    (example,) = blocks("py")
    assert example.count('"/dev/shm/gpu-example.pool"') == 1
    code = example.replace("/dev/shm/gpu-example.pool", str(pool_path))
    if not torch.cuda.is_available():
        code, _, rest = code.partition("with Pool.open")
        assert rest
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_yaml_is_what_lmcache_reads() -> None:
    (text,) = blocks("yaml")
    extra = yaml.safe_load(text)["extra_config"]
    settings = Settings.from_extra_config(extra, {})
    assert settings.pool == ("/dev/shm/beluga.pool",)
    assert settings.size == 64 << 30
    module = importlib.import_module(extra["storage_plugin.beluga.module_path"])
    assert hasattr(module, extra["storage_plugin.beluga.class_name"])


def test_lmcache_accepts_the_yaml(tmp_path: Path) -> None:
    from lmcache.v1.config import LMCacheEngineConfig

    path = tmp_path / "beluga.yaml"
    path.write_text(blocks("yaml")[0])
    config = LMCacheEngineConfig.from_file(str(path))
    assert config.storage_plugins == ["beluga"]
    assert config.extra_config["beluga.size"] == "64GiB"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = [block for block in blocks("sh") if block.rstrip().endswith("-m pytest")]
    assert command.strip() in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_error_is_explained() -> None:
    _, _, section = README.partition("## When something goes wrong")
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in names if f"`{name}`" not in section} == set()


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_heading_that_is_linked_exists() -> None:
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
