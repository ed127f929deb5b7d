"""The gateway's metrics."""

from __future__ import annotations

import collections
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from lbcore.errors import LoadBalancerError
from lbcore.generation import Finished

_TOKENS = {
    "prompt": "Prompt tokens.",
    "cached_prompt": "Prompt tokens found in a cache.",
    "output": "Generated tokens.",
}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """Requests, their times and their tokens. A model's name becomes a label only when some worker serves it, so that
    clients cannot grow the page."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = _Answers()
        self.registry.register(self._answers)
        self.in_flight = Gauge("lb_gateway_requests_in_flight", "Requests under way.", registry=self.registry)
        self.failed_attempts = Counter(
            "lb_gateway_failed_attempts",
            "Attempts that failed at a worker, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.continued = Counter(
            "lb_gateway_continued_answers",
            "Times that another worker went on with an answer.",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def answered(
        self, route: str, model: str, code: int, duration_s: float | None, ttft_s: float | None, usage: Finished | None
    ) -> None:
        """A request has got its answer, good or bad; one that never was complete has no duration."""
        row = self._answers.row(route, model)
        row.codes[code] = row.codes.get(code, 0) + 1
        if duration_s is not None:
            row.duration_s.observe(duration_s)
        if ttft_s is not None:
            row.ttft_s.observe(ttft_s)
        if usage is not None:
            row.prompt_tokens += usage.prompt_tokens
            row.cached_tokens += usage.cached_tokens
            row.output_tokens += usage.output_tokens

    def attempt_failed(self, error: LoadBalancerError) -> None:
        """A worker was tried in vain."""
        self.failed_attempts.labels(error.reason).inc()


class _Times:
    """Durations counted by bucket."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds with how many were at most so long, as Prometheus wants them."""
        bounds = [*map(floatToGoString, _SECONDS), "+Inf"]
        return [*zip(bounds, map(float, accumulate(self.counts)), strict=True)]


class _Row:
    """What is counted of one route and model."""

    __slots__ = ("cached_tokens", "codes", "duration_s", "output_tokens", "prompt_tokens", "ttft_s")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.duration_s = _Times()
        self.ttft_s = _Times()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0


class _Answers(Collector):
    """Counts answers in plain numbers, which costs a request a tenth of what labelled metrics do, and makes metrics of
    them when somebody looks."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], _Row] = {}

    def row(self, route: str, model: str) -> _Row:
        row = self._rows.get((route, model))
        if row is None:
            row = self._rows[route, model] = _Row()
        return row

    def collect(self) -> Iterator[Metric]:
        labels = ["route", "model"]
        requests = CounterMetricFamily("lb_gateway_requests", "Requests answered.", labels=[*labels, "code"])
        ttft = HistogramMetricFamily(
            "lb_gateway_ttft_seconds", "From the end of the request's body to the first token.", labels=labels
        )
        duration = HistogramMetricFamily(
            "lb_gateway_duration_seconds", "From the end of the request's body to the end of its answer.", labels=labels
        )
        tokens: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in _TOKENS}
        for (route, model), row in self._rows.items():
            for code, count in row.codes.items():
                requests.add_metric([route, model, str(code)], count)
            if any(row.ttft_s.counts):
                ttft.add_metric([route, model], row.ttft_s.buckets(), row.ttft_s.total_s)
            if any(row.duration_s.counts):
                duration.add_metric([route, model], row.duration_s.buckets(), row.duration_s.total_s)
            tokens["prompt"][model] += row.prompt_tokens
            tokens["cached_prompt"][model] += row.cached_tokens
            tokens["output"][model] += row.output_tokens
        yield from (requests, ttft, duration)
        for kind, text in _TOKENS.items():
            family = CounterMetricFamily(f"lb_gateway_{kind}_tokens", text, labels=["model"])
            for model, count in sorted(tokens[kind].items()):
                family.add_metric([model], count)
            yield family
