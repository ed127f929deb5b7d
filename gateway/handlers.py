"""The routes of the gateway, as aiohttp handlers. What generates is an `Exchange`, wherever its request was read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any

from aiohttp import HttpVersion11, hdrs, web

from gateway.exchange import Exchange, Exchanges
from gateway.express import new_request_id
from gateway.processes import Place
from gateway.render import model_list, model_object
from gateway.routes import Routes
from gateway.server import IDLE_S, General, Server
from gateway.siblings import page_of_all
from gateway.terms import printable, terms_of
from lbcore.errors import BodyTooLarge, InvalidRequest, LoadBalancerError, ModelNotFound
from lbcore.generation import Dialect
from lbcore.metrics import exposition

_PATHS = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETION,
    "/v1/embeddings": Dialect.EMBEDDING,
}
_MODELS = "/v1/models"


class _Sent(web.StreamResponse):
    """What a handler returns to aiohttp when its answer was written already."""

    def __init__(self, keeps_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keeps_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """There is nothing to prepare."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nor to end."""


class _AiohttpPeer:
    """The `Peer` of a request that aiohttp has read."""

    def __init__(self, request: web.BaseRequest) -> None:
        """Raises ConnectionError: the client went away."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client went away.")
        general = request.protocol
        assert isinstance(general, General)
        self.transport = transport
        self.is_http_1_1 = request.version >= HttpVersion11
        self._server = general.server
        self._keeps_alive = bool(request.keep_alive)
        self._request = request
        self._draining: asyncio.Task[None] | None = None

    @property
    def keeps_alive(self) -> bool:
        """See `Peer`."""
        return self._keeps_alive and not self._server.is_stopping

    @keeps_alive.setter
    def keeps_alive(self, keeps_alive: bool) -> None:
        self._keeps_alive = keeps_alive

    def when_drained(self, go_on: Callable[[], None]) -> None:
        """See `Peer`."""
        self._draining = asyncio.get_running_loop().create_task(self._drain(go_on))

    async def _drain(self, go_on: Callable[[], None]) -> None:
        try:
            await self._request.writer.drain()
        except ConnectionError:
            # The request is about to be cancelled.
            return
        go_on()


class Handlers:
    """The routes of the gateway. `draining` turns /ready to 503; what runs goes on."""

    def __init__(self, exchanges: Exchanges, rng: Random, place: Place | None = None) -> None:
        self._exchanges = exchanges
        self._fleet = exchanges.fleet
        self._registry = exchanges.metrics.registry
        self._rng = rng
        self._place = place
        self._sent = {keeps_alive: _Sent(keeps_alive) for keeps_alive in (False, True)}
        self.draining = False

    def server(self, **options: Any) -> Server:
        """The server of all routes; the options are those of aiohttp's `web.Server`."""
        routes = Routes(self._request_id)
        for path, dialect in _PATHS.items():
            routes.add("POST", path, self._generation(dialect))
        routes.add("GET", _MODELS, self._models)
        routes.add("GET", _MODELS + "/", self._model)
        routes.add("GET", "/health", self._health)
        routes.add("GET", "/ready", self._ready)
        routes.add("GET", "/metrics", self._expose)
        limit = self._exchanges.config.max_body_bytes
        return Server(
            routes.answer,
            self._exchanges,
            self._rng,
            request_factory=partial(_request, loop=asyncio.get_running_loop(), limit=limit),
            # A client that goes away must stop its request at the worker, streaming or not.
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=IDLE_S,
            **options,
        )

    def _generation(self, dialect: Dialect) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            peer = _AiohttpPeer(request)
            over = asyncio.Event()
            exchange = Exchange(self._exchanges, peer, dialect, self._request_id(request), over.set)
            try:
                try:
                    body = await self._body(request)
                    terms = terms_of(request.headers)
                except LoadBalancerError as error:
                    exchange.refuse(error)
                else:
                    exchange.begin(body, terms)
                await over.wait()
            except (asyncio.CancelledError, ConnectionError):
                if not over.is_set():
                    exchange.cancel()
                raise
            return self._sent[peer.keeps_alive]

        return handle

    async def _body(self, request: web.BaseRequest) -> bytes:
        limit = self._exchanges.config.max_body_bytes
        content = request.content
        if content.is_eof():
            # It came with its head, as most do.
            body = content.read_nowait(-1)
            if len(body) > limit:
                raise _too_large(limit)
            return body
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        expected = request.headers.get(hdrs.EXPECT)
        if expected is not None:
            if expected.lower() != "100-continue":
                raise InvalidRequest("The only expectation that can be met is 100-continue.")
            if request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise _too_large(limit) from None
        except web.RequestPayloadError:
            raise InvalidRequest("The request body is not encoded as its headers say.") from None

    def _request_id(self, request: web.BaseRequest) -> str:
        """The client's own X-Request-ID when it is short and printable, else a new one."""
        return printable(request.headers.get("X-Request-ID", "")) or new_request_id(self._rng)

    async def _models(self, request: web.BaseRequest) -> web.Response:
        return _json(model_list(self._fleet.models()))

    async def _model(self, request: web.BaseRequest) -> web.Response:
        name = request.path.removeprefix(_MODELS + "/")
        created_unix_s = self._fleet.models().get(name)
        if created_unix_s is None:
            raise ModelNotFound(f"The model `{name}` does not exist or you do not have access to it.")
        return _json(model_object(name, created_unix_s))

    async def _health(self, request: web.BaseRequest) -> web.Response:
        return _json(b'{"status":"ok"}')

    async def _ready(self, request: web.BaseRequest) -> web.Response:
        if self.draining:
            return _json(b'{"status":"draining"}', 503)
        if not self._fleet.ready:
            return _json(b'{"status":"no worker is ready"}', 503)
        return _json(b'{"status":"ok"}')

    async def _expose(self, request: web.BaseRequest) -> web.Response:
        if self._place is None:
            return exposition(self._registry, request.headers.get("Accept", ""))
        return await page_of_all(self._registry, self._place)


def _request(
    message: Any,
    payload: Any,
    protocol: Any,
    writer: Any,
    task: asyncio.Task[None],
    *,
    loop: asyncio.AbstractEventLoop,
    limit: int,
) -> web.BaseRequest:
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {limit} bytes.", code="body_too_large")


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, headers={hdrs.CONTENT_TYPE: "application/json"})
