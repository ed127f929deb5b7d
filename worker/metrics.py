"""The worker's metrics: its own load as it reports it, and how its requests ended, read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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


class WorkerCollector(Collector):
    """Turns the present load into metrics, and how requests have ended so far."""

    def __init__(
        self,
        load: Callable[[], LoadReport],
        ends: Mapping[str, int],
        faults: Callable[[], Mapping[str, int]],
    ) -> None:
        self._load = load
        self._ends = ends
        self._faults = faults

    def collect(self) -> Iterator[Metric]:
        yield self._counted("lb_worker_requests", "Requests that have ended, by reason.", "reason", self._ends)
        faults = "Times the engine let a request down, by how; one request may have several."
        yield self._counted("lb_worker_engine_faults", faults, "kind", self._faults())
        ready = "Whether the engine can serve now."
        yield GaugeMetricFamily("lb_worker_engine_ready", ready, value=float(not self._load().unready))
        report = self._load()
        for name, text, field in _GAUGES:
            yield GaugeMetricFamily(name, text, value=float(getattr(report, field)))
        for name, text, field in _COUNTERS:
            yield CounterMetricFamily(name, text, value=float(getattr(report, field)))

    @staticmethod
    def _counted(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=[label])
        for value, count in sorted(counts.items()):
            family.add_metric([value], count)
        return family


def worker_registry(
    load: Callable[[], LoadReport],
    ends: Mapping[str, int],
    faults: Callable[[], Mapping[str, int]],
) -> CollectorRegistry:
    """A registry with the worker's load, the ends of its requests by reason, and the process's own figures."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(load, ends, faults))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
