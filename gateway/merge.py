"""Metrics pages of several gateway processes made one. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# Counters, histograms and most gauges add up. These do not.
_OTHERWISE: dict[str, Callable[[Sequence[float]], float]] = {
    "process_start_time_seconds": min,
    "process_max_fds": min,
    "python_info": max,
}


# What remains of a process that is no more: counts, but not what was under way.
_LASTING = frozenset(("counter", "histogram", "summary"))


def merge(pages: Iterable[str], past: str = "") -> bytes:
    """One page in Prometheus' text format whose samples are those of `pages`, added up where that makes sense.

    `past` is the page of processes that have ended: what they counted stays counted.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]] = {}
    for page, is_past in [*((page, False) for page in pages), (past, True)]:
        for family in text_string_to_metric_families(page):
            if is_past and family.type not in _LASTING:
                continue
            families.setdefault(family.name, family)
            samples = values.setdefault(family.name, {})
            for sample in family.samples:
                samples.setdefault((sample.name, tuple(sample.labels.items())), []).append(sample.value)
    for name, family in families.items():
        family.samples = [
            Sample(sample_name, dict(labels), _combine(sample_name, numbers))
            for (sample_name, labels), numbers in values[name].items()
        ]
    registry = CollectorRegistry()
    registry.register(_Fixed(families.values()))
    return generate_latest(registry)


def _combine(name: str, numbers: Sequence[float]) -> float:
    return _OTHERWISE.get(name, math.fsum)(numbers)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
