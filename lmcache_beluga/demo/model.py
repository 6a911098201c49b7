"""A small Llama with random weights: real attention over a real KV cache, and no download.

Weights come from a fixed seed, so every process that builds the model has the same one. They are
drawn wide (``initializer_range``): with the usual narrow ones attention is nearly uniform, and a
wrong KV cache would hardly show in the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lmcache_beluga.demo.paged_kv import KVShape, PagedKV
from lmcache_beluga.demo.text import VOCABULARY

SHAPE = KVShape(layers=4, heads=4, head_dim=64, dtype=torch.bfloat16)
"""KV layout of the model: 4 KiB per token."""

_MAX_TOKENS = 1 << 17
_PREFILL_STEP = 1024
_SEED = 20260101


class SmallLlama:
    """A 4-layer Llama, 8 query and 4 KV heads of 64, on the first GPU or the CPU.

    Args:
        device: where weights, activations and KV live.
    """

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(_SEED)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=SHAPE.layers,
            num_attention_heads=8,
            num_key_value_heads=SHAPE.heads,
            head_dim=SHAPE.head_dim,
            max_position_embeddings=_MAX_TOKENS,
            initializer_range=0.1,
            attn_implementation="sdpa",
        )
        # Weights are drawn on the CPU: the GPU's generator gives other numbers.
        self._model = LlamaForCausalLM(config).to(device=device, dtype=SHAPE.dtype).eval()
        self._device = device

    def prefill(
        self, tokens: list[int], kv: PagedKV, progress: Callable[[int], None] = lambda done: None
    ) -> None:
        """Compute the KV cache of ``tokens`` from nothing and write it to the paged cache.

        The prompt is computed in pieces, as serving engines do; ``progress`` is told the number of
        tokens done after each.
        """
        cache = DynamicCache()
        for start in range(0, len(tokens), _PREFILL_STEP):
            end = min(start + _PREFILL_STEP, len(tokens))
            self._forward(tokens[start:end], cache)
            self._synchronize()
            progress(end)
        kv.write(0, *_layers(cache))
        self._synchronize()

    def continue_from(
        self, tokens: list[int], cached: int, kv: PagedKV, steps: int
    ) -> torch.Tensor:
        """Recompute ``tokens[cached:]`` on top of the cached KV, then decode greedily.

        Args:
            tokens: the whole prompt.
            cached: number of leading tokens whose KV is taken from ``kv``. Less than
                ``len(tokens)``: logits come only from a token that is computed.
            steps: number of tokens to produce.

        Returns:
            Logits of each step, float32 on the CPU, shape ``[steps, vocabulary]``.
        """
        cache = DynamicCache()
        for layer in range(SHAPE.layers):
            keys, values = kv.read(layer, cached)
            cache.update(keys, values, layer)
        logits = []
        pending = tokens[cached:]
        for _ in range(steps):
            last = self._forward(pending, cache)
            logits.append(last.float().cpu())
            pending = [int(last.argmax())]
        return torch.stack(logits)

    def warm_up(self) -> None:
        """Run each shape of step once, so that what is timed later holds no first-use work."""
        cache = DynamicCache()
        for count in (_PREFILL_STEP, _PREFILL_STEP, 1):
            self._forward([0] * count, cache)
        self._synchronize()

    def _forward(self, tokens: list[int], cache: DynamicCache) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self._device)
        with torch.inference_mode():
            out = self._model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        return out.logits[0, -1]

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _layers(cache: DynamicCache) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys and values of each layer, each ``[tokens, heads, head_dim]``."""
    if hasattr(cache, "layers"):
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
    else:  # transformers before 4.54
        pairs = list(zip(cache.key_cache, cache.value_cache, strict=True))
    keys = [key[0].transpose(0, 1) for key, _ in pairs]
    return keys, [value[0].transpose(0, 1) for _, value in pairs]
