"""A whole engine goes on with an answer at servers that help, hinder or vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import orjson
import pytest
from aiohttp import web

from lbcore.clock import MonotonicClock
from lbcore.errors import Cancelled, CannotContinue
from lbcore.generation import (
    Continuation,
    Delta,
    Dialect,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
)
from worker.engines.openai.engine import OpenAIEngine, UpstreamOptions

SOME = Continuation("Hello")
TIMEOUT_S = 10.0


class Server:
    """A server that goes on with ", you", and whose tokens are bytes."""

    def __init__(self, owner: str = "sglang", *, tells: bool = True, refuses: bool = False) -> None:
        self.owner = owner
        self.tells = tells
        self.refuses = refuses
        self.vanishes = False
        """Whether it closes the connection when it is asked for tokens."""
        self.silence: asyncio.Event | None = None
        """Until when it is asked for tokens in vain."""
        self.asked = 0
        self.bodies: list[dict[str, object]] = []
        self.url = ""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": self.owner}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.silence is not None:
            await self.silence.wait()
        if self.vanishes:
            assert request.transport is not None
            request.transport.abort()
        if not self.tells:
            return web.Response(status=404)
        return web.json_response({"tokens": [*(await request.json())["prompt"].encode()]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(orjson.loads(await request.read()))
        if self.refuses:
            return web.json_response({"error": {"message": "no such thing"}}, status=400)
        usage = {"prompt_tokens": 25, "completion_tokens": 3}
        choice = {"index": 0, "delta": {"content": ", you"}, "finish_reason": "stop"}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for data in (orjson.dumps({"choices": [choice], "usage": usage}), b"[DONE]"):
            await response.write(b"data: " + data + b"\n\n")
        return response


class Answer:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self._over = asyncio.Event()

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self._over.set()

    async def end(self) -> list[Event]:
        await asyncio.wait_for(self._over.wait(), TIMEOUT_S)
        return self.events


@asynccontextmanager
async def running(*servers: Server) -> AsyncIterator[OpenAIEngine]:
    for server in servers:
        await server.start()
    options = UpstreamOptions(upstream=tuple(server.url for server in servers))
    engine = OpenAIEngine("m", options, MonotonicClock(), Random(1))
    try:
        info = await engine.start()
        assert info.continues == all(server.owner == "sglang" for server in servers)
        yield engine
    finally:
        await engine.close()
        for server in servers:
            await server.stop()


def ask(engine: OpenAIEngine, continuation: Continuation, **fields: object) -> Answer:
    answer = Answer()
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, **fields}
    engine.submit(GenerationRequest("r", Dialect.CHAT, orjson.dumps(body), continuation=continuation), answer.emit)
    assert answer.events == []
    return answer


async def test_the_rest_of_an_answer() -> None:
    server = Server()
    async with running(server) as engine:
        events = await ask(engine, SOME).end()
    assert events == [Started(25), Delta(0, ", you", finish_reason=FinishReason.STOP), Finished(20, 0, 8)]
    (body,) = server.bodies
    assert body["messages"] == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Hello"}]
    assert (body["max_tokens"], body["continue_final_message"]) == (4, True)


async def test_nothing_begun_is_a_request_like_any_other() -> None:
    server = Server(tells=False)
    async with running(server) as engine:
        assert (await ask(engine, Continuation()).end())[-1] == Finished(25, 0, 3)
    assert server.asked == 0


async def test_at_the_limit_no_more_is_generated() -> None:
    server = Server()
    async with running(server) as engine:
        events = await ask(engine, SOME, max_tokens=5).end()
    assert events == [Delta(finish_reason=FinishReason.LENGTH), Finished(0, 0, 5)]
    assert server.bodies == []


@pytest.mark.parametrize(
    ("server", "fields"),
    [
        (Server("somebody"), {}),
        (Server(tells=False), {}),
        (Server(refuses=True), {}),
        (Server(), {"n": 2}),
        (Server(), {"max_tokens": "x"}),
    ],
)
async def test_what_cannot_be_gone_on_with_may_be_elsewhere(server: Server, fields: dict[str, object]) -> None:
    async with running(server) as engine:
        (end,) = await ask(engine, SOME, **fields).end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, CannotContinue)


async def test_a_server_that_vanishes_when_asked_is_followed_by_the_next() -> None:
    servers = [Server(), Server()]
    async with running(*servers) as engine:
        for gone, other in (servers, servers[::-1]):
            gone.vanishes, other.vanishes = True, False
            assert (await ask(engine, SOME).end())[-1] == Finished(20, 0, 8)


async def test_one_that_is_stopped_while_the_server_is_asked_ends_at_once() -> None:
    server = Server()
    server.silence = asyncio.Event()
    async with running(server) as engine:
        answer = ask(engine, SOME)
        async with asyncio.timeout(TIMEOUT_S):
            while not server.asked:
                await asyncio.sleep(0.001)
        engine.abort("r")
        (end,) = await answer.end()
        assert isinstance(end, Failed)
        assert isinstance(end.error, Cancelled)
        server.silence = None
        assert (await ask(engine, SOME).end())[-1] == Finished(20, 0, 8)
