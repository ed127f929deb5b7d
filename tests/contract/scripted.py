"""A scripted OpenAI-compatible server, and an engine over such servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import orjson
from aiohttp import web

from lbcore.clock import Clock, MonotonicClock
from tests.contract.engines import TIMEOUT_S, EngineCase, Feature, Watch
from tests.contract.upstreams import KEY, LlamaCppHttpServer, WithUpstream
from tests.fakes import ManualClock, Signal
from worker.engines.openai.engine import OpenAIEngine, UpstreamOptions

MODEL = "the-model"

Script = Callable[["Exchange"], Awaitable[None]]


def chunk(text: str = "", reason: str | None = None, **more: object) -> dict[str, object]:
    """A chunk of a chat's stream."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}], **more}


USAGE = {"prompt_tokens": 50, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 10}}


class Exchange:
    """One request at a scripted server, and the means to answer it."""

    def __init__(self, request: web.Request, body: bytes) -> None:
        self.request = request
        self.body = body
        self.response: web.StreamResponse | None = None

    async def reply(self, status: int, body: object, **headers: str) -> None:
        """A whole answer: JSON, or text as a web page."""
        if isinstance(body, str):
            self.response = web.Response(status=status, text=body, content_type="text/html", headers=headers)
        else:
            given = {"Content-Type": "application/json", **headers}
            self.response = web.Response(status=status, body=orjson.dumps(body), headers=given)

    async def send(self, *data: object) -> None:
        """Events of a stream: JSON, or text as it is."""
        for one in data:
            text = one.encode() if isinstance(one, str) else orjson.dumps(one)
            await self.raw(b"data: " + text + b"\n\n")

    async def raw(self, piece: bytes) -> None:
        if self.response is None:
            self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await self.response.prepare(self.request)
        assert isinstance(self.response, web.StreamResponse)
        await self.response.write(piece)

    def cut(self) -> None:
        """Closes the connection without a word."""
        assert self.request.transport is not None
        self.request.transport.abort()

    async def answer(self, *texts: str) -> None:
        """A whole stream."""
        await self.send(*map(chunk, texts), chunk("", "stop"), {"choices": [], "usage": USAGE}, "[DONE]")


class ScriptedServer:
    """An OpenAI-compatible server that does what a test says; otherwise it answers "Hello there" and is healthy."""

    def __init__(self, script: Script | None = None, owner: str = "somebody", **card: object) -> None:
        self.script = script or (lambda exchange: exchange.answer("Hello", " there"))
        self.models: Mapping[str, object] = {"data": [{"id": MODEL, "owned_by": owner, **card}]}
        self.models_status = 200
        self.health_status = 200
        self.page = ""
        self.exchanges: list[Exchange] = []
        self.connections: set[object] = set()
        """Those over which requests came."""
        self.keys: list[str | None] = []
        self.ended = 0
        """Requests that are over, or whose client went away."""
        self.happened = Signal()
        self.looks = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens, at the port it had before if it was there already."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/{route:.*}", self._generate)
        app.router.add_get("/{route:.*}", self._look)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        exchange = Exchange(request, await request.read())
        self.exchanges.append(exchange)
        self.connections.add(request.transport)
        self.keys.append(request.headers.get("Authorization"))
        self.happened.tell()
        try:
            await self.script(exchange)
        finally:
            self.ended += 1
            self.happened.tell()
        return exchange.response or web.Response(status=500)

    async def _look(self, request: web.Request) -> web.StreamResponse:
        self.looks += 1
        self.happened.tell()
        match request.path:
            case "/health":
                return web.Response(status=self.health_status)
            case "/v1/models":
                return web.json_response(self.models, status=self.models_status)
            case "/metrics" if self.page:
                return web.Response(text=self.page)
        return web.Response(status=404)


CASE = EngineCase(
    "openai",
    lambda: WithUpstream(LlamaCppHttpServer()),
    frozenset(Feature),
    tells_token_ids=False,
    counts_prompt_first=False,
)


@asynccontextmanager
async def running(
    *servers: ScriptedServer,
    clock: Clock | None = None,
    at: tuple[str, ...] = (),
    case: EngineCase = CASE,
    **options: object,
) -> AsyncIterator[Watch]:
    """An engine over servers that listen, and over further URLs."""
    async with AsyncExitStack() as stack:
        for server in servers:
            await server.start()
            stack.push_async_callback(server.stop)
        urls = (*(server.url for server in servers), *at)
        given = {"upstream_api_key": KEY, **options}
        engine = OpenAIEngine(MODEL, UpstreamOptions(upstream=urls, **given), clock or MonotonicClock(), Random(1))  # type: ignore[arg-type]
        watch = Watch(case, engine)
        try:
            await watch.start()
            yield watch
            assert_nothing_is_left(engine)
        finally:
            await watch.close()


def assert_nothing_is_left(engine: OpenAIEngine) -> None:
    ended = {request_id for request_id, call in engine._calls.items() if call.ended}
    assert set(engine._calls) == ended
    assert len(engine._turns) == 0


async def idle(watch: Watch) -> None:
    """Returns when no connection is in use."""
    assert isinstance(watch.engine, OpenAIEngine)
    async with asyncio.timeout(TIMEOUT_S):
        while watch.engine._sent:
            await asyncio.sleep(0.001)
    for upstream in watch.engine._upstreams:
        assert (upstream.crowd.ours, upstream.waiting_for_token) == (0, 0)
        assert not upstream.meter._streams


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.001)


async def passing(clock: ManualClock, holds: Callable[[], object]) -> None:
    """Lets time pass until something holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            clock.advance(0.3)
            await asyncio.sleep(0.001)


def bad_ends(watch: Watch) -> dict[str, int]:
    return dict(watch.engine.load().faults)


async def cut_after(exchange: Exchange, *data: object) -> None:
    await exchange.send(*data)
    await asyncio.sleep(0)
    exchange.cut()


async def hang_up(exchange: Exchange) -> None:
    exchange.cut()
