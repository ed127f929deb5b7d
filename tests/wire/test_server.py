"""A server of ours: health, reflection, a port of its own; and the page of metrics beside it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry, Gauge

from lbcore.api.v1 import routing_pb2, routing_pb2_grpc
from lbcore.errors import ConfigError
from lbcore.metrics import MetricsServer
from lbcore.wire.channel import open_channel
from lbcore.wire.server import GrpcServer, service
from tests.wire.conftest import fixture, soon

NAME = "lbcore.api.v1.RoutingService"
UP, DOWN = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def a_server() -> GrpcServer:
    return GrpcServer([service(routing_pb2, "RoutingService", routing_pb2_grpc.RoutingServiceServicer())])


class Served:
    """A server on a port, and a channel to it."""

    def __init__(self) -> None:
        self.server = a_server()
        self.port = self.server.listen("127.0.0.1", 0)
        self.channel = open_channel(f"127.0.0.1:{self.port}")

    async def health(self, name: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return int((await soon(stub.Check(health_pb2.HealthCheckRequest(service=name)))).status)


@fixture()
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.server.start()
    yield served
    await served.channel.close()
    await served.server.stop(0)


@pytest.mark.parametrize("name", ["", NAME])
async def test_health_follows_what_the_process_says(served: Served, name: str) -> None:
    assert await served.health(name) == DOWN
    await served.server.set_serving(True)
    assert await served.health(name) == UP
    await served.server.set_serving(False)
    assert await served.health(name) == DOWN


async def test_who_watches_the_health_is_told_of_changes(served: Served) -> None:
    watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert (await soon(watch.read())).status == DOWN
    await served.server.set_serving(True)
    assert (await soon(watch.read())).status == UP
    watch.cancel()


async def test_reflection_lists_our_services(served: Served) -> None:
    call = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {entry.name for entry in (await soon(call.read())).list_services_response.service}
    assert listed == {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    call.cancel()


async def test_a_port_in_use_is_named_with_the_reason(served: Served) -> None:
    with pytest.raises(ConfigError, match=rf"--port: cannot listen on 127.0.0.1:{served.port}: .*in use"):
        a_server().listen("127.0.0.1", served.port)


async def test_a_host_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--port: cannot listen on 192\.0\.2\.1:0"):
        a_server().listen("192.0.2.1", 0)


async def test_a_server_on_ipv6_gets_a_port() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    assert a_server().listen("::1", 0) > 0


async def test_a_server_that_never_started_can_be_stopped() -> None:
    server = a_server()
    server.listen("127.0.0.1", 0)
    await server.stop(0)


@fixture()
async def page() -> AsyncIterator[str]:
    """Where a page with one gauge is served."""
    registry = CollectorRegistry()
    Gauge("answer", "To everything.", registry=registry).set(42)
    server = MetricsServer(registry)
    port = await server.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}"
    await server.stop()


async def test_the_page_shows_the_registry(page: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{page}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain")
        assert "answer 42.0" in await response.text()


async def test_the_page_s_server_is_healthy(page: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{page}/health") as response:
        assert await response.json() == {"status": "ok"}


async def test_a_metrics_port_in_use_is_named_with_the_reason(page: str) -> None:
    port = page.rpartition(":")[2]
    second = MetricsServer(CollectorRegistry())
    with pytest.raises(ConfigError, match=rf"--metrics-port: cannot listen on 127.0.0.1:{port}: .*in use"):
        await second.start("127.0.0.1", int(port))
    await second.stop()


async def test_a_page_that_was_never_served_can_be_stopped() -> None:
    await MetricsServer(CollectorRegistry()).stop()
