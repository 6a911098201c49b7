"""GPUs on the pool: their access to its memory."""
