"""The /metrics port of a process that has no other HTTP: Prometheus' text format, and /health."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from lbcore.errors import ConfigError


class MetricsServer:
    """Serves one registry. Collection runs on the event loop, so collectors may read what the loop owns."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which is a free one when `port` is 0.

        Raises:
            ConfigError: the port is in use or may not be opened.
        """
        runner = await self._setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"--metrics-port: cannot listen on {host}:{port}: {error.strerror or error}") from error
        address = runner.addresses[0]
        return int(address[1])

    async def _setup(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        return self._runner

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return exposition(self._registry, request.headers.get("Accept", ""))

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


def exposition(registry: CollectorRegistry, accept: str) -> web.Response:
    """The registry's metrics in the format the scraper asked for."""
    encode, content_type = choose_encoder(accept)
    return web.Response(body=encode(registry), headers={"Content-Type": content_type})
