"""One vLLM engine of the benchmark, with LMCache's multiprocess connector or without any.

Does one step after the other as they arrive on its input, and answers each with a line of JSON:
``cold``, ``warm``, ``burst N``, ``stall N``, ``end``. Times are in milliseconds, from adding a
request to its first token. Run by run.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from itertools import pairwise
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "PYTHONHASHSEED": "0",
}

BURST_TOKENS = 32768
IDLE_STEP_S = 0.001


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kv-gb", type=float, required=True)
    parser.add_argument("--prompts", type=json.loads, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    engine = Engine(options)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        step, *arguments = line.split()
        if step == "end":
            break
        result = getattr(engine, step)(*map(int, arguments))
        answers.write(json.dumps(result) + "\n")
    os._exit(0)  # nothing that happens while an engine goes down is measured


class Engine:
    def __init__(self, options: argparse.Namespace) -> None:
        from vllm import LLM, SamplingParams
        from vllm.config import KVTransferConfig

        lengths = {int(tokens): count for tokens, count in options.prompts.items()}
        arguments: dict[str, Any] = {
            "model": options.model,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "bfloat16",
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "max_model_len": max(lengths) + 512,
            "max_num_batched_tokens": 16384,
            "max_num_seqs": 16,
            "generation_config": "vllm",
            "seed": 0,
            "gpu_memory_utilization": 0.4,
            "kv_cache_memory_bytes": int(options.kv_gb * 1e9),
            "attention_backend": "FLASH_ATTN",
        }
        if options.port:
            arguments["kv_transfer_config"] = KVTransferConfig(
                kv_connector="LMCacheMPConnector",
                kv_role="kv_both",
                kv_connector_extra_config={
                    "lmcache.mp.host": "tcp://127.0.0.1",
                    "lmcache.mp.port": options.port,
                },
            )
        self._stores = bool(options.port)
        self._llm = LLM(**arguments)
        self._llm.apply_model(_draw_weights)
        self._engine = self._llm.llm_engine
        self._first = SamplingParams(
            max_tokens=1, detokenize=False, ignore_eos=True, logprobs=4, temperature=0
        )
        self._long = SamplingParams(
            max_tokens=120, detokenize=False, ignore_eos=True, temperature=0
        )
        self._yield_when_idle()
        self._prompts = {
            tokens: [_prompt(1_000_003 * tokens + i, tokens) for i in range(count)]
            for tokens, count in lengths.items()
        }
        self._requests = 0
        for seed, tokens in ((1, 3000), (2, 9000)):
            self._run([_prompt(seed, tokens)])

    def _yield_when_idle(self) -> None:
        """As vLLM's engine process does: a step that ran nothing lets other threads run."""
        core = self._engine.engine_core.engine_core
        step = core.step_fn

        def stepping() -> Any:
            result = step()
            if not result[1] and core.scheduler.has_requests():
                time.sleep(IDLE_STEP_S)
            return result

        core.step_fn = stepping

    def cold(self) -> dict[str, Any]:
        """Each prompt once; with a connector, it is stored."""
        times: dict[str, list[float]] = {}
        for tokens, prompts in self._prompts.items():
            for prompt in prompts:
                ((ttft, cached, _),) = self._run([prompt])
                assert cached == 0
                times.setdefault(str(tokens), []).append(ttft)
                if self._stores:
                    time.sleep(0.3 + tokens / 65536 * 1.2)  # stores go on after the first token
        time.sleep(3 if self._stores else 0)
        return {"ttft_ms": times}

    def warm(self) -> dict[str, Any]:
        """Each prompt again, three times the first one of each length."""
        times: dict[str, list[float]] = {}
        signatures: dict[str, Any] = {}
        hits = True
        for tokens, prompts in self._prompts.items():
            for index in [0, 0, 0, *range(1, min(3, len(prompts)))]:
                ((ttft, cached, signature),) = self._run([prompts[index]])
                hits &= cached >= tokens - 257
                times.setdefault(str(tokens), []).append(ttft)
                signatures[f"{tokens}:{index}"] = signature
        return {"ttft_ms": times, "all_hit": hits, "logprobs": signatures}

    def burst(self, requests: int) -> dict[str, Any]:
        """So many different prompts of 32 K tokens at once."""
        results = self._run(self._prompts[BURST_TOKENS][:requests])
        return {
            "ttft_ms": sorted(ttft for ttft, _, _ in results),
            "all_hit": all(cached >= BURST_TOKENS - 257 for _, cached, _ in results),
        }

    def stall(self, requests: int) -> dict[str, Any]:
        """So many all-hit requests while another decodes: how long it pauses."""
        self._requests += 1
        decode = f"decode-{self._requests}"
        self._add(decode, _prompt(900 + self._requests, 256), self._long)
        times: list[float] = []
        injected = False
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.request_id.startswith(decode):
                    times.append(time.perf_counter())
            if len(times) == 20 and not injected:
                injected = True
                for i, prompt in enumerate(self._prompts[BURST_TOKENS][:requests]):
                    self._add(f"hit-{self._requests}-{i}", prompt, self._first)
        gaps = [(b - a) * 1e3 for a, b in pairwise(times)]
        return {"gap_before_ms": statistics.median(gaps[5:18]), "longest_gap_ms": max(gaps[18:])}

    def _add(self, name: str, prompt: list[int], parameters: Any) -> None:
        from vllm import TokensPrompt

        self._engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), parameters)

    def _run(self, prompts: list[list[int]]) -> list[tuple[float, int, Any]]:
        """All at once: time to first token, tokens from the cache, log-probabilities."""
        self._requests += 1
        names = [f"r{self._requests}-{i}" for i in range(len(prompts))]
        first: dict[str, float] = {}
        outputs: dict[str, Any] = {}
        begin = time.perf_counter()
        for name, prompt in zip(names, prompts, strict=True):
            self._add(name, prompt, self._first)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.outputs and output.outputs[0].token_ids:
                    first.setdefault(output.request_id, (time.perf_counter() - begin) * 1e3)
                    outputs[output.request_id] = output
        return [
            (first[name], outputs[name].num_cached_tokens or 0, _signature(outputs[name]))
            for name in names
        ]


def _draw_weights(model: Any) -> int:
    """Weights for which KV matters: those of load_format dummy are too small for that."""
    import torch

    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.data.fill_(1.0)
        else:
            deviation = 0.03 if "qkv_proj" in name or "o_proj" in name else 0.02
            parameter.data.normal_(0, deviation, generator=generator)
    torch.cuda.synchronize()
    return 0


def _prompt(seed: int, tokens: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(10, 128000) for _ in range(tokens)]


def _signature(output: Any) -> list[list[float]]:
    logprobs = output.outputs[0].logprobs[0]
    return sorted([token, round(entry.logprob, 4)] for token, entry in logprobs.items())


if __name__ == "__main__":
    main()
