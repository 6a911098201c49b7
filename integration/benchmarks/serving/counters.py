"""Counters in Prometheus' text format."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def totals(text: str) -> dict[str, float]:
    """Each sample's name, and the sum over its labels.

    >>> totals('# TYPE vllm:hits_total counter\\nvllm:hits_total{engine="0"} 3.0\\n')
    {'vllm:hits_total': 3.0}
    """
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
