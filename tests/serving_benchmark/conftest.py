"""The serving benchmark is no package that is installed: it lies in a folder of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "integration" / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "serving" / "in_vllm")]
FAKE_VLLM = Path(__file__).with_name("fake_vllm.py")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder: 2 layers, 2 heads of 64 values, so 1 KiB of KV per token."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 256,
        "vocab_size": 1000,
        "max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def fake_python(tmp_path: Path) -> str:
    """An interpreter with a vLLM that computes nothing."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_VLLM} "$@"\n')
    script.chmod(0o755)
    return str(script)
