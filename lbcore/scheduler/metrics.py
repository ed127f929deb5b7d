"""The scheduler's metrics: what it decided, counted; and what it knows of every worker, read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from lbcore.clock import Clock
from lbcore.pool import WorkerPool
from lbcore.types import Endpoint, EndpointState, RefusalReason, WorkerId

_GAUGES: tuple[tuple[str, str, Callable[[Endpoint], float]], ...] = (
    ("queued_requests", "Requests in the worker's queue, as last reported.", lambda e: e.load.queued_requests),
    ("running_requests", "Requests running at the worker, as last reported.", lambda e: e.load.running_requests),
    ("queued_prompt_tokens", "Prompt tokens the worker still has to compute.", lambda e: e.load.queued_prompt_tokens),
    ("tokens_in_flight", "Prompt and generated tokens of unfinished requests.", lambda e: e.load.tokens_in_flight),
    ("kv_used_blocks", "KV blocks held by unfinished requests.", lambda e: e.load.kv_used_blocks),
    ("kv_cached_blocks", "KV blocks that hold reusable prefixes.", lambda e: e.load.kv_cached_blocks),
    ("credit_requests", "Requests sent and not acknowledged by a report yet.", lambda e: e.credit_requests),
    ("credit_tokens", "Expected uncached prompt tokens of those requests.", lambda e: e.credit_tokens),
    ("prefill_milliseconds_per_token", "Milliseconds per prompt token.", lambda e: e.token_ms),
)

_WAITED_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Bounds of the histogram of waits: two for each power of ten, from a few turns of the event loop to most deadlines."""


class SchedulerMetrics:
    """Counters to be told of, and a registry that holds everything. `waiting` says how many wait for a model."""

    def __init__(self, pool: WorkerPool, clock: Clock, waiting: Callable[[str], int]) -> None:
        self.registry = CollectorRegistry()
        self._routed: dict[WorkerId, int] = {}
        self._refused = Counter(
            "lb_scheduler_refused", "Requests nobody could take, by reason.", ["reason"], registry=self.registry
        )
        self._waited = Histogram(
            "lb_scheduler_waited_seconds",
            "Time until the answer of those requests that had to wait for it.",
            buckets=_WAITED_S,
            registry=self.registry,
        )
        self._lost = Counter(
            "lb_scheduler_workers_lost", "Workers lost, by reason.", ["reason"], registry=self.registry
        )
        self._expired = Counter(
            "lb_scheduler_tickets_expired", "Dispatches that never reached their worker.", registry=self.registry
        )
        for reason in RefusalReason:
            self._refused.labels(reason.value)
        self.registry.register(_RoutedCollector(self._routed))
        self.registry.register(_EndpointCollector(pool, clock))
        self.registry.register(_WaitingCollector(pool, waiting))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def routed(self, worker_id: WorkerId) -> None:
        self._routed[worker_id] = self._routed.get(worker_id, 0) + 1

    def refused(self, reason: RefusalReason) -> None:
        self._refused.labels(reason.value).inc()

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def lost(self, reason: str) -> None:
        self._lost.labels(reason).inc()

    def expired(self, tickets: int) -> None:
        self._expired.inc(tickets)

    def forget(self, worker_id: WorkerId) -> None:
        """Drops what was counted for a worker that is gone, so that labels do not grow for ever."""
        self._routed.pop(worker_id, None)


class _RoutedCollector(Collector):
    """Counts that everything on the event loop adds to: a `Counter` takes a lock and checks its labels every time."""

    def __init__(self, routed: Mapping[WorkerId, int]) -> None:
        self._routed = routed

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("lb_scheduler_routed", "Requests routed.", labels=["worker_id"])
        # A copy: the scrape is on a thread of its own where the metrics server says so.
        for worker_id, count in [*self._routed.items()]:
            family.add_metric([worker_id], count)
        yield family


class _WaitingCollector(Collector):
    def __init__(self, pool: WorkerPool, waiting: Callable[[str], int]) -> None:
        self._pool = pool
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "lb_scheduler_waiting_requests", "Requests that wait for a worker.", labels=["model"]
        )
        for model in self._pool.models():
            family.add_metric([model], self._waiting(model))
        yield family


class _EndpointCollector(Collector):
    def __init__(self, pool: WorkerPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        endpoints = self._pool.endpoints()
        now = self._clock.now()
        for name, text, read in _GAUGES:
            family = GaugeMetricFamily(f"lb_scheduler_worker_{name}", text, labels=["worker_id"])
            for endpoint in endpoints:
                family.add_metric([endpoint.worker_id], read(endpoint))
            yield family
        age = GaugeMetricFamily(
            "lb_scheduler_worker_report_age_seconds", "Age of the worker's last report.", labels=["worker_id"]
        )
        for endpoint in endpoints:
            age.add_metric([endpoint.worker_id], now - endpoint.reported_at)
        yield age
        yield _counts(endpoints)


def _counts(endpoints: tuple[Endpoint, ...]) -> Metric:
    family = GaugeMetricFamily("lb_scheduler_workers", "Workers by model and state.", labels=["model", "state"])
    counts: dict[tuple[str, EndpointState], int] = {}
    for endpoint in endpoints:
        for name in {*endpoint.spec.model_names}:
            for state in EndpointState:
                counts.setdefault((name, state), 0)
            counts[name, endpoint.state] += 1
    for (name, state), number in sorted(counts.items()):
        family.add_metric([name, state.value], number)
    return family
