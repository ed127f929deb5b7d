"""The gateway's HTTP over a dispatcher that answers as it is told, and a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import orjson
from aiohttp import ClientResponse, ClientSession, web

from gateway.config import GatewayConfig
from gateway.exchange import Exchanges, Trace
from gateway.fleet import Fleet
from gateway.handlers import Handlers
from gateway.metrics import GatewayMetrics
from gateway.server import Server
from lbcore.clock import MonotonicClock
from lbcore.dispatch import Attempt, Dispatcher, End
from lbcore.errors import LoadBalancerError
from lbcore.flow import Take
from lbcore.generation import Delta, Event, Finished, FinishReason, GenerationRequest, Started
from lbcore.types import (
    Capacity,
    EndpointState,
    Epoch,
    LoadReport,
    RouteFacts,
    ServedModel,
    WorkerId,
    WorkerSpec,
    WorkerStatus,
)
from lbcore.wire.clients import GenerationClients
from lbcore.wire.routing_client import TableStep
from tests.fakes import ManualClock, Signal
from tests.fleet import MODEL, ROOMY, spec
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, eventually, soon

Step = list[Event] | Exception | asyncio.Event
"""A batch of events, an end, or something to wait for."""

ANSWER: list[Step] = [
    [Started(3), Delta(text="Hel")],
    [Delta(text="lo", finish_reason=FinishReason.STOP), Finished(3, 1, 2)],
]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "m", "prompt": "Hi"}
LIMIT = 4096


class FakeFlow:
    """A flow of one request that knows whether it is paused."""

    def __init__(self, happened: Signal) -> None:
        self._happened = happened
        self.pauses = 0
        self.open = asyncio.Event()
        self.open.set()

    @property
    def is_paused(self) -> bool:
        return not self.open.is_set()

    def pause(self) -> None:
        self.pauses += 1
        self.open.clear()
        self._happened.tell()

    def resume(self) -> None:
        self.open.set()
        self._happened.tell()


class FakeDispatcher:
    """Answers every request with the same steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = ANSWER
        self.asked: list[tuple[RouteFacts, GenerationRequest]] = []
        self.closed = 0
        self.happened = Signal()
        self.flows: list[FakeFlow] = []

    def start(
        self,
        facts: RouteFacts,
        request: GenerationRequest,
        take: Take,
        done: Callable[[End], None],
        observe: Callable[[Attempt], None],
    ) -> FakeDispatch:
        self.asked.append((facts, request))
        flow = FakeFlow(self.happened)
        self.flows.append(flow)
        return FakeDispatch(self._run(flow, take, observe), done)

    async def _run(self, flow: FakeFlow, take: Take, observe: Callable[[Attempt], None]) -> Finished:
        try:
            observe(Attempt(WorkerId("w0"), None))
            self.happened.tell()
            for step in self.steps:
                match step:
                    case asyncio.Event():
                        await step.wait()
                    case Exception():
                        if isinstance(step, LoadBalancerError):
                            observe(Attempt(WorkerId("w0"), step))
                        raise step
                    case _:
                        take([*step], flow)
                        await flow.open.wait()
                        if type(step[-1]) is Finished and step is self.steps[-1]:
                            return step[-1]
            # As a worker that says nothing more.
            return await asyncio.get_running_loop().create_future()
        finally:
            self.closed += 1
            self.happened.tell()


class FakeDispatch:
    """One request that is answered in steps, until it is cancelled."""

    first_token_at: float | None = None

    def __init__(self, steps: Coroutine[Any, Any, Finished], done: Callable[[End], None]) -> None:
        self._done: Callable[[End], None] | None = done
        self._task = asyncio.get_running_loop().create_task(steps)
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        self._done = None
        self._task.cancel()

    def _ended(self, task: asyncio.Task[Finished]) -> None:
        if self._done is not None and not task.cancelled():
            error = task.exception()
            assert error is None or isinstance(error, Exception)
            self._done(error or task.result())


class Gateway:
    """The application, everything it was made of, and a client. With a `real` dispatcher the fake one is idle."""

    def __init__(self, real: Dispatcher | None = None, trace: Trace | None = None, **options: Any) -> None:
        self.dispatcher = FakeDispatcher()
        self.fleet = Fleet(lambda alive: None)
        self.clock = ManualClock()
        config = GatewayConfig(max_body_bytes=LIMIT, request_timeout_s=77.0, **options)
        dispatcher: Any = real or self.dispatcher
        self.exchanges = Exchanges(config, dispatcher.start, self.fleet, GatewayMetrics(), self.clock, trace)
        self.handlers = Handlers(self.exchanges, Random(1))
        self.runner = web.ServerRunner(self.handlers.server(), shutdown_timeout=1.0)
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

    @property
    def server(self) -> Server:
        server = self.runner.server
        assert isinstance(server, Server)
        return server

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

    async def taken(self, count: int = 1) -> None:
        """Returns once so many requests have reached the dispatcher."""
        await self.dispatcher.happened.until(lambda: len(self.dispatcher.asked) == count)

    async def let_go(self) -> None:
        """Returns once no request is under way."""
        await self.dispatcher.happened.until(lambda: self.dispatcher.closed == len(self.dispatcher.asked))
        await eventually(lambda: not self.exchanges.in_flight)


@asynccontextmanager
async def before_worker(
    wire: Wire,
    scheduler: SchedulerHost,
    worker: WorkerHost,
    capacity: Capacity = ROOMY,
    trace: Trace | None = None,
    **options: Any,
) -> AsyncIterator[Gateway]:
    """A gateway in front of one worker."""
    scheduler.join(replace(spec(capacity=capacity), address=worker.address))
    workers = GenerationClients()
    dispatcher = Dispatcher(wire.routing_client(scheduler), workers, MonotonicClock())
    async with Gateway(dispatcher, trace, **options) as gateway:
        gateway.serves(MODEL)
        yield gateway
    await workers.close()


async def error_of(response: ClientResponse) -> dict[str, Any]:
    """OpenAI's error object, and nothing but it."""
    assert response.headers["Content-Type"].startswith("application/json")
    body = orjson.loads(await response.read())
    assert [*body] == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]
