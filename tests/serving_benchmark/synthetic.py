"""Result files of the serving benchmark with numbers that follow from formulas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from serving.measured import Answer, PhaseResult

PER_TOKEN = 131072


def phase(
    backend: str,
    name: str,
    ttfts: Sequence[float],
    *,
    workload: str = "documents",
    tokens: int = 32768,
    hit: float = 0.0,
    reuse: float | None = None,
    repeat: int = 0,
    at_once: bool = False,
    output_tokens: int = 8,
    tpot: float = 0.01,
    **more: Any,
) -> PhaseResult:
    """One; requests follow each other, or all start at 0."""
    answers, now = [], 0.0
    for ttft in ttfts:
        end = ttft + tpot * (output_tokens - 1)
        answers.append(Answer(now, ttft, end, tokens, output_tokens, 1))
        now += 0.0 if at_once else end
    prompts = tokens * len(ttfts)
    axes = {"tokens": float(tokens), "concurrency": float(len(ttfts) if at_once else 1)}
    if reuse is not None:
        axes["reuse"] = reuse
    made = PhaseResult(
        backend=backend,
        workload=workload,
        name=name,
        repeat=repeat,
        concurrency=int(axes["concurrency"]),
        axes=axes,
        answers=answers,
        wall_s=max((a.sent_s + a.end_s for a in answers), default=1.0),
        cpu_s={"vllm": 2.0 * len(ttfts), "lmcache": 0.5 if backend.endswith("mp") else 0.0},
        prompt_tokens=prompts,
        loaded_tokens=round(hit * prompts),
        stored_bytes=0 if backend == "none" else round((1 - hit) * prompts) * PER_TOKEN,
        loaded_bytes=round(hit * prompts) * PER_TOKEN,
        reused_tokens=round((reuse or 0.0) * prompts),
    )
    return replace(made, **more)


def document(phases: Iterable[PhaseResult], **more: Any) -> dict[str, Any]:
    """A result file's content."""
    return {
        "command": "python integration/benchmarks/serving --json out.json",
        "machine": {
            "cpu": "Imagined 9000",
            "cores": 16,
            "memory_bytes": 128 << 30,
            "kernel": "6.1",
            "gpus": ["Imagined GPU"],
            "load_average": 0.5,
        },
        "versions": {"python": "3.12.3", "vllm": "0.25.1", "lmcache": "0.5.6"},
        "settings": {"model": "/models/llama", "kv_bytes_per_token": PER_TOKEN, "chunk": 256},
        "emulated": ["beluga: the pool lies on tmpfs"],
        "skipped": {},
        "phases": [asdict(phase) for phase in phases],
        **more,
    }


def write(path: Path, phases: Iterable[PhaseResult], **more: Any) -> Path:
    """The file."""
    path.write_text(json.dumps(document(phases, **more)))
    return path


#: Seconds per token to compute, seconds per token to load, part by which storing slows computing.
MODELS = {
    "none": (3.7e-5, 0.0, 0.0),
    "cpu": (3.7e-5, 4.0e-6, 0.11),
    "beluga": (3.7e-5, 3.9e-6, 0.10),
    "lmcache-mp": (3.7e-5, 3.7e-6, 0.01),
    "beluga-mp": (3.7e-5, 3.65e-6, 0.01),
    "dax": (3.7e-5, 1.5e-5, 3.8),
    "redis": (3.7e-5, 3.2e-4, 0.11),
    "mooncake": (3.7e-5, 4.8e-5, 0.15),
}


def plausible(backends: Iterable[str] = tuple(MODELS), repeats: int = 3) -> list[PhaseResult]:
    """All workloads, with a little noise that is the same every time."""
    draw = np.random.default_rng(0)
    found = []
    for repeat in range(repeats):
        for backend in backends:
            found += _one(backend, repeat, lambda t: float(t * (1 + draw.normal(0, 0.01))))
    return found


def _one(backend: str, repeat: int, noisy: Callable[[float], float]) -> list[PhaseResult]:
    compute, load, overhead = MODELS[backend]
    caches = backend != "none"

    def ttft(tokens: int, hit: float) -> float:
        new = tokens * (1 - hit * caches)
        long = 1 + new / 65536
        return noisy(0.02 + new * compute * long * (1 + overhead) + caches * hit * tokens * load)

    found = []
    for tokens in (8192, 32768, 65536):
        name = f"{tokens // 1024}K"
        for what, hit in (("populate", 0.0), ("all-hit", 1.0)):
            times = [ttft(tokens, hit) for _ in range(3)]
            found.append(
                phase(
                    backend,
                    f"{what} {name}",
                    times,
                    tokens=tokens,
                    hit=hit * caches,
                    reuse=hit,
                    repeat=repeat,
                )
            )
    for size in (8, 32):
        each = ttft(32768, 1.0)
        times = [each * (i + 1) * 0.85 for i in range(size)]
        found.append(
            phase(
                backend,
                f"burst {size} x 32K",
                times,
                hit=1.0 * caches,
                reuse=1.0,
                repeat=repeat,
                at_once=True,
            )
        )
    gap = phase(backend, "decode while 4 x 32K load", [0.03, 0.2, 0.3], repeat=repeat)
    found.append(
        replace(
            gap,
            axes={"tokens": 32768.0, "decodes": 1.0},
            answers=[replace(gap.answers[0], longest_gap_s=noisy(0.3)), *gap.answers[1:]],
        )
    )
    times = [ttft(32768, 0.0) for _ in range(6)]
    found.append(phase(backend, "populate 32K", times, workload="reuse", repeat=repeat))
    for reuse in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0):
        found.append(
            phase(
                backend,
                f"reuse {reuse * 100:g} % of 32K",
                [ttft(32768, reuse) for _ in range(3)],
                workload="reuse",
                hit=reuse * caches,
                reuse=reuse,
                repeat=repeat,
            )
        )
    lengths = np.random.default_rng(repeat).lognormal(8.8, 1.0, 200).clip(100, 32768)
    times = [ttft(int(n), 0.4) * (1 + 3 * (i % 7 == 0)) for i, n in enumerate(lengths)]
    made = phase(
        backend,
        "conversation, 200 requests",
        times,
        workload="trace",
        hit=0.35 * caches,
        reuse=0.37,
        repeat=repeat,
    )
    found.append(replace(made, axes={"requests": 200.0}))
    return found
