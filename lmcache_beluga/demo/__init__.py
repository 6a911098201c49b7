"""The main job, end to end, on one machine: what ``beluga demo`` runs.

Two processes, each with a real LMCache engine and a small transformer, share one pool: the first
computes the KV cache of a long text, the second loads it and continues. Nothing here is needed to
use the pool; ``torch``, ``transformers`` and ``lmcache`` come with the ``demo`` extra.
"""
