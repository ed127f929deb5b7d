"""The gateway's metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gateway.merge import merge
from gateway.processes import Place
from lbcore.errors import LoadBalancerError
from lbcore.generation import Finished

_SIBLING_TIMEOUT_S = 2.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """Requests, their times and their tokens. A model's name becomes a label only when some worker serves it, so that
    clients cannot grow the page."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["route", "model"]
        self.requests = Counter("lb_gateway_requests", "Requests answered.", [*labels, "code"], registry=self.registry)
        self.ttft_s = Histogram(
            "lb_gateway_ttft_seconds",
            "From the request's arrival to the first token.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration_s = Histogram(
            "lb_gateway_duration_seconds",
            "From the request's arrival to the end of its answer.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("lb_gateway_prompt_tokens", "Prompt tokens.", ["model"], registry=self.registry)
        self.cached_tokens = Counter(
            "lb_gateway_cached_prompt_tokens", "Prompt tokens found in a cache.", ["model"], registry=self.registry
        )
        self.output_tokens = Counter("lb_gateway_output_tokens", "Generated tokens.", ["model"], registry=self.registry)
        self.in_flight = Gauge("lb_gateway_requests_in_flight", "Requests under way.", registry=self.registry)
        self.failed_attempts = Counter(
            "lb_gateway_failed_attempts",
            "Attempts that failed at a worker, by reason.",
            ["reason"],
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def answered(
        self, route: str, model: str, code: int, duration_s: float, ttft_s: float | None, usage: Finished | None
    ) -> None:
        """A request has got its answer, good or bad."""
        self.requests.labels(route, model, str(code)).inc()
        self.duration_s.labels(route, model).observe(duration_s)
        if ttft_s is not None:
            self.ttft_s.labels(route, model).observe(ttft_s)
        if usage is not None:
            self.prompt_tokens.labels(model).inc(usage.prompt_tokens)
            self.cached_tokens.labels(model).inc(usage.cached_tokens)
            self.output_tokens.labels(model).inc(usage.output_tokens)

    def attempt_failed(self, error: LoadBalancerError) -> None:
        """A worker was tried in vain."""
        self.failed_attempts.labels(error.reason).inc()


async def page_of_all(registry: CollectorRegistry, place: Place) -> web.Response:
    """The metrics of this process and of its siblings as one page; a sibling that does not answer is left out."""
    pages = await asyncio.gather(*(_page_at(path) for path in place.sibling_sockets))
    merged = merge([generate_latest(registry).decode(), *filter(None, pages)])
    return web.Response(body=merged, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _page_at(path: Path) -> str | None:
    timeout = ClientTimeout(total=_SIBLING_TIMEOUT_S)
    try:
        async with (
            ClientSession(connector=UnixConnector(str(path)), timeout=timeout) as http,
            http.get("http://sibling/metrics") as response,
        ):
            return await response.text()
    except (ClientError, TimeoutError):
        return None
