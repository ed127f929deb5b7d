"""The gateway's HTTP over a dispatcher that answers as it is told, and a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from aiohttp import ClientResponse, ClientSession, web

from gateway.config import GatewayConfig
from gateway.fleet import Fleet
from gateway.handlers import Handlers
from gateway.metrics import GatewayMetrics
from lbcore.dispatch import Attempt
from lbcore.errors import LoadBalancerError
from lbcore.generation import Delta, Event, Finished, FinishReason, GenerationRequest, Started
from lbcore.types import EndpointState, Epoch, LoadReport, RouteFacts, ServedModel, WorkerId, WorkerSpec, WorkerStatus
from lbcore.wire.clients import TableStep
from tests.fakes import ManualClock, Signal
from tests.wire.conftest import eventually, soon

Step = list[Event] | Exception | asyncio.Event
"""A batch of events, an end, or something to wait for."""

ANSWER: list[Step] = [
    [Started(3), Delta(text="Hel")],
    [Delta(text="lo", finish_reason=FinishReason.STOP), Finished(3, 1, 2)],
]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "m", "prompt": "Hi"}
LIMIT = 4096


class FakeDispatcher:
    """Answers every request with the same steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = ANSWER
        self.asked: list[tuple[RouteFacts, GenerationRequest]] = []
        self.closed = 0
        self.happened = Signal()

    async def run(
        self, facts: RouteFacts, request: GenerationRequest, observe: Callable[[Attempt], None]
    ) -> AsyncGenerator[list[Event], None]:
        self.asked.append((facts, request))
        observe(Attempt(WorkerId("w0"), None))
        self.happened.tell()
        try:
            for step in self.steps:
                match step:
                    case asyncio.Event():
                        await step.wait()
                    case Exception():
                        if isinstance(step, LoadBalancerError):
                            observe(Attempt(WorkerId("w0"), step))
                        raise step
                    case _:
                        yield step
        finally:
            self.closed += 1
            self.happened.tell()


class Gateway:
    """The application, everything it was made of, and a client."""

    def __init__(self) -> None:
        self.dispatcher = FakeDispatcher()
        self.fleet = Fleet(lambda alive: None)
        self.clock = ManualClock()
        config = GatewayConfig(max_body_bytes=LIMIT, request_timeout_s=77.0)
        fake: Any = self.dispatcher
        self.handlers = Handlers(config, fake, self.fleet, GatewayMetrics(), self.clock)
        self.runner = web.AppRunner(
            self.handlers.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        self.port = 0
        self.client: ClientSession

    async def __aenter__(self) -> Gateway:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]
        self.client = ClientSession(f"http://127.0.0.1:{self.port}")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()
        await self.runner.cleanup()

    def serves(self, *names: str, state: EndpointState = EndpointState.READY) -> None:
        """Makes the fleet one worker with these models."""
        models = tuple(ServedModel(name, created_unix_s=1_700_000_000) for name in names)
        spec = WorkerSpec(WorkerId("w0"), Epoch(1), "w0:1", models)
        self.fleet.take(TableStep(True, (WorkerStatus(spec, state, LoadReport()),), ()))

    async def chat(self, **fields: object) -> ClientResponse:
        return await soon(self.client.post("/v1/chat/completions", json={**CHAT, **fields}))

    async def metrics(self) -> str:
        response = await soon(self.client.get("/metrics"))
        return await response.text()

    async def counted(self, code: int, *, route: str = "chat", model: str = "m") -> bool:
        line = f'lb_gateway_requests_total{{code="{code}",model="{model}",route="{route}"}} 1.0'
        return line in await self.metrics()

    async def let_go(self) -> None:
        """Returns once no request is under way."""
        await self.dispatcher.happened.until(lambda: self.dispatcher.closed == len(self.dispatcher.asked))
        await eventually(lambda: not self.handlers.in_flight)


async def error_of(response: ClientResponse) -> dict[str, Any]:
    """OpenAI's error object, and nothing but it."""
    assert response.headers["Content-Type"].startswith("application/json")
    body = orjson.loads(await response.read())
    assert [*body] == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]
