"""A gRPC server of ours: services, health, reflection, a port, and a graceful end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lbcore.errors import ConfigError
from lbcore.wire.channel import new_server

Registration = tuple[ServiceDescriptor, Callable[[grpc.aio.Server], None]]
"""A servicer and how to add it to a server; `service` makes one."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcServer:
    """Serves our services beside `grpc.health.v1.Health` and server reflection.

    The health of the whole process ("") and of each of our services is told together: NOT_SERVING until `set_serving`
    and while draining.
    """

    def __init__(self, services: Sequence[Registration]) -> None:
        self._server = new_server()
        self._health = health.aio.HealthServicer()
        self._names = ["", *(descriptor.full_name for descriptor, _ in services)]
        for _, add in services:
            add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )

    def listen(self, host: str, port: int) -> int:
        """Takes the port and returns it; a free one when `port` is 0. Calls are answered after `start`.

        Raises:
            ConfigError: the port is in use or may not be opened.
        """
        _probe(host, port)
        # A bare IPv6 address needs brackets before a port.
        shown = f"[{host}]" if ":" in host else host
        try:
            return self._server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError as error:
            raise ConfigError(f"--port: cannot listen on {shown}:{port}; is it in use?") from error

    async def start(self) -> None:
        """Begins to answer, as NOT_SERVING."""
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Tells health watchers whether to send work here."""
        for name in self._names:
            await self._health.set(name, _SERVING if serving else _NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, gives running ones `grace_s` seconds, then ends them."""
        await self._server.stop(grace_s)


def _probe(host: str, port: int) -> None:
    """Fails where gRPC would, with the system's reason and without the lines that gRPC's core writes to stderr."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise ConfigError(f"--port: cannot listen on {host}:{port}: {error.strerror or error}") from error


def service(module: Any, name: str, servicer: object) -> Registration:
    """A servicer with what is needed to add it: `module` is the generated `*_pb2` with the service `name`."""
    descriptor: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
    stubs = __import__(module.__name__ + "_grpc", fromlist=["_"])

    def add(server: grpc.aio.Server) -> None:
        getattr(stubs, f"add_{name}Servicer_to_server")(servicer, server)

    return descriptor, add
