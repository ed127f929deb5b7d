"""The worker's metrics: its own load as it reports it, read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from lbcore.types import LoadReport

_GAUGES = (
    ("lb_worker_queued_requests", "Requests accepted whose prefill has not begun.", "queued_requests"),
    ("lb_worker_running_requests", "Requests whose prefill has begun.", "running_requests"),
    ("lb_worker_queued_prompt_tokens", "Prompt tokens still to be computed.", "queued_prompt_tokens"),
    ("lb_worker_tokens_in_flight", "Prompt and generated tokens of unfinished requests.", "tokens_in_flight"),
    ("lb_worker_kv_used_blocks", "KV blocks held by unfinished requests.", "kv_used_blocks"),
    ("lb_worker_kv_cached_blocks", "KV blocks that hold reusable prefixes.", "kv_cached_blocks"),
    ("lb_worker_prefill_tokens_per_second", "Measured speed of prefill, moving average.", "prefill_tokens_per_s"),
    ("lb_worker_step_time_milliseconds", "Measured time of a decoding step, moving average.", "step_time_ms"),
)
_COUNTERS = (
    ("lb_worker_prompt_tokens", "Prompt tokens of all requests begun.", "prompt_token_total"),
    ("lb_worker_cached_prompt_tokens", "Prompt tokens found in the prefix cache.", "cached_prompt_token_total"),
    ("lb_worker_output_tokens", "Tokens generated.", "output_token_total"),
)


class LoadCollector(Collector):
    """Turns the present load into metrics."""

    def __init__(self, load: Callable[[], LoadReport]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        report = self._load()
        for name, text, field in _GAUGES:
            yield GaugeMetricFamily(name, text, value=float(getattr(report, field)))
        for name, text, field in _COUNTERS:
            yield CounterMetricFamily(name, text, value=float(getattr(report, field)))


def worker_registry(load: Callable[[], LoadReport]) -> CollectorRegistry:
    """A registry with the worker's load and the process's own figures."""
    registry = CollectorRegistry()
    registry.register(LoadCollector(load))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
