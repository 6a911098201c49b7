"""vLLM instances over one KV cache after the other: same model, same prompts, one table."""
