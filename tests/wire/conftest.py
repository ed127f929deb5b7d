"""Our services on real gRPC servers inside the test's event loop, with clocks and engines that do as they are told."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest
import pytest_asyncio
from prometheus_client import generate_latest

from lbcore.api.v1 import admin_pb2_grpc, generation_pb2_grpc, registry_pb2, registry_pb2_grpc, routing_pb2_grpc
from lbcore.clock import MonotonicClock
from lbcore.errors import LoadBalancerError
from lbcore.flow import Inbox
from lbcore.generation import Event, Failed, Finished, GenerationRequest
from lbcore.policies.assignments import Assignments
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import PoolEffect, PoolEvent, Registered, Reported, Ticked
from lbcore.router import QueueLimits
from lbcore.scheduler import registry_service
from lbcore.scheduler.admin_service import AdminServicer
from lbcore.scheduler.app import serve_waiting
from lbcore.scheduler.registry_service import RegistryServicer
from lbcore.scheduler.routing_service import RoutingServicer
from lbcore.scheduler.state import SchedulerState
from lbcore.types import Endpoint, EndpointState, LoadReport, PrefixReport, Route, RouteFacts, Ticket, WorkerSpec
from lbcore.wire.channel import open_channel
from lbcore.wire.clients import GenerationClient
from lbcore.wire.convert import load_to_proto, prefixes_to_proto, spec_to_proto
from lbcore.wire.routing_client import RoutingClient
from lbcore.wire.server import GrpcServer, Registration
from lbcore.wire.status import error_from_rpc
from tests.fakes import ManualClock, ScriptedEngine, Signal
from tests.fleet import MODEL
from worker.load import LoadTracker
from worker.service import GenerationServicer, Sessions

if TYPE_CHECKING:
    from tests.wire.browser import Browser
    from tests.wire.gateway_host import Gateway

LEASE_S = 3.0
TICKET_S = 10.0
REPORT_INTERVAL_S = 0.25
PATIENCE_S = 10.0
AT_ONCE = QueueLimits(late_binding=False)
"""Requests wait for workers that are full, and for no others."""

T = TypeVar("T")

fixture = partial(pytest_asyncio.fixture, loop_scope="session")
"""For asynchronous fixtures of this folder, whose tests all share one event loop.

gRPC has one poller for all loops of a process, and trips over what is still under way on one that was closed.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class Host:
    """A gRPC server that can stop and come back on the same port."""

    def __init__(self) -> None:
        self._server: GrpcServer | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, *services: Registration) -> None:
        self._server = GrpcServer(services)
        self.port = self._server.listen("127.0.0.1", self.port)
        await self._server.start()

    async def stop(self) -> None:
        """As when the process dies: what runs is cut."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None


class WorkerHost(Host):
    """A worker's GenerationService over a scripted engine."""

    def __init__(self, capacity: int = 100) -> None:
        super().__init__()
        self.engine = ScriptedEngine()
        self.load = LoadTracker()
        self.changed = Signal()
        self.sessions = Sessions(self.engine, self.load, capacity, self.changed.tell, MonotonicClock())

    async def start(self) -> None:
        await self.serve(GenerationServicer(self.sessions).registration())

    async def emptied(self) -> None:
        """Returns once the worker holds no request."""
        await self.changed.until(lambda: not len(self.sessions))


class WatchedState(SchedulerState):
    """The scheduler's state, which remembers what it was told and says whenever that happens."""

    happened: Signal
    events: list[PoolEvent]

    def handle(self, event: PoolEvent) -> list[PoolEffect]:
        effects = super().handle(event)
        self.events.append(event)
        self.happened.tell()
        return effects

    def watch(self) -> None:
        """Begins to."""
        self.happened, self.events = Signal(), []
        desk: Any = self.desk
        for name in ("ask", "withdraw", "serve"):
            setattr(desk, name, self._telling(getattr(desk, name)))

    def _telling(self, call: Callable[..., T]) -> Callable[..., T]:
        def calling(*arguments: Any) -> T:
            try:
                return call(*arguments)
            finally:
                self.happened.tell()

        return calling


class SchedulerHost(Host):
    """The scheduler's services over a clock that a test moves."""

    def __init__(self, limits: QueueLimits = AT_ONCE) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.report_interval_s = REPORT_INTERVAL_S
        self._limits = limits
        self._serving: asyncio.Task[None] | None = None
        self.forget()

    def forget(self) -> None:
        """As a process that starts anew: another epoch and an empty pool."""
        pool = WorkerPool(lease_ttl_s=LEASE_S, ticket_ttl_s=TICKET_S)
        assignments = Assignments.of(build_policy("least_requests"))
        epoch = Random().randrange(1, 2**63)
        self.state = WatchedState(pool, assignments, self.clock, Random(0), epoch, self._limits)
        self.state.watch()
        self.registry = RegistryServicer(self.state, LEASE_S, self.report_interval_s)

    async def start(self) -> None:
        routing, admin = RoutingServicer(self.state), AdminServicer(self.state, self.registry)
        await self.serve(self.registry.registration(), routing.registration(), admin.registration())
        self._serving = asyncio.get_running_loop().create_task(serve_waiting(self.state.desk))

    async def stop(self) -> None:
        await super().stop()
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None

    def route(self, facts: RouteFacts) -> Route:
        """Where a request goes that does not have to wait."""
        found = self.state.desk.ask(facts, lambda answer: None)
        assert isinstance(found, Route)
        return found

    def waiting(self) -> int:
        """How many requests wait for the model of the tests."""
        return self.state.desk.waiting(MODEL)

    def join(self, *specs: WorkerSpec) -> None:
        """Makes workers known, as if each had registered on a connection of its own."""
        for spec in specs:
            self.state.handle(Registered(spec, -1))

    def elapse(self, seconds: float) -> None:
        """Lets time pass and does what the scheduler does about it."""
        self.clock.advance(seconds)
        self.state.handle(Ticked())

    def page(self) -> bytes:
        """The scheduler's metrics."""
        return generate_latest(self.state.metrics.registry)

    def reports(self) -> list[LoadReport]:
        """Every report that arrived."""
        return [event.report for event in self.state.events if isinstance(event, Reported)]

    def endpoint(self, worker_id: str) -> Endpoint | None:
        return next((one for one in self.state.pool.endpoints() if one.worker_id == worker_id), None)

    def credit(self) -> tuple[int, int]:
        """Requests and tokens booked and not acknowledged, over all workers."""
        endpoints = self.state.pool.endpoints()
        return sum(one.credit_requests for one in endpoints), sum(one.credit_tokens for one in endpoints)


class Connection:
    """A worker's Connect stream, spoken by hand."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = registry_pb2_grpc.RegistryServiceStub(channel).Connect()

    async def send(self, **message: Any) -> None:
        await self.call.write(registry_pb2.ConnectRequest(**message))

    async def receive(self) -> registry_pb2.ConnectResponse:
        """The next message.

        Raises:
            LoadBalancerError: the stream ended in it.
        """
        try:
            return await soon(self.call.read())
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    async def register(self, spec: WorkerSpec) -> registry_pb2.Lease:
        await self.send(registration=spec_to_proto(spec))
        return (await self.receive()).lease

    async def report(self, report: LoadReport) -> int:
        """Sends a report and returns the number that was acknowledged."""
        await self.send(load_report=load_to_proto(report))
        return (await self.receive()).report_ack.sequence

    async def tell_prefixes(self, report: PrefixReport) -> None:
        await self.send(prefix_report=prefixes_to_proto(report))

    async def end(self) -> LoadBalancerError:
        """The error in which the stream ends; what comes before is passed over."""
        try:
            while await self.receive() is not grpc.aio.EOF:
                pass
        except LoadBalancerError as error:
            return error
        raise AssertionError("the stream ended well")


class Wire:
    """Everything a test opens, closed again in the opposite order."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def worker(self, capacity: int = 100) -> WorkerHost:
        host = WorkerHost(capacity)
        await host.start()
        self._stack.push_async_callback(host.stop)
        return host

    async def scheduler(self, limits: QueueLimits = AT_ONCE) -> SchedulerHost:
        host = SchedulerHost(limits)
        await host.start()
        self._stack.push_async_callback(host.stop)
        return host

    def generation_client(self, host: Host) -> GenerationClient:
        client = GenerationClient(host.address)
        self._stack.push_async_callback(client.close)
        return client

    def routing_client(self, host: Host) -> RoutingClient:
        client = RoutingClient(host.address)
        self._stack.push_async_callback(client.close)
        return client

    def connection(self, host: Host) -> Connection:
        return Connection(self.channel(host))

    def generation_stub(self, host: Host) -> generation_pb2_grpc.GenerationServiceStub:
        return generation_pb2_grpc.GenerationServiceStub(self.channel(host))

    def routing_stub(self, host: Host) -> routing_pb2_grpc.RoutingServiceStub:
        return routing_pb2_grpc.RoutingServiceStub(self.channel(host))

    def admin_stub(self, host: Host) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self.channel(host))

    def channel(self, host: Host) -> grpc.aio.Channel:
        channel = open_channel(host.address)
        self._stack.push_async_callback(channel.close)
        return channel


@fixture()
async def wire() -> AsyncIterator[Wire]:
    async with AsyncExitStack() as stack:
        yield Wire(stack)


@fixture()
async def worker(wire: Wire) -> WorkerHost:
    return await wire.worker()


@fixture()
async def scheduler(wire: Wire) -> SchedulerHost:
    return await wire.scheduler()


@fixture()
async def gateway() -> AsyncIterator[Gateway]:
    """A gateway with one model, over a dispatcher that answers as it is told."""
    # Its module takes from this one.
    from tests.wire.gateway_host import Gateway

    async with Gateway() as gateway:
        gateway.serves("m")
        yield gateway


@fixture()
async def browser(gateway: Gateway) -> AsyncIterator[Browser]:
    """A connection to the gateway."""
    from tests.wire.browser import connect

    browser = await connect(gateway)
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every report, so that a test can wait for each."""
    monkeypatch.setattr(registry_service, "ACK_EVERY", 1)


@fixture(autouse=True)
async def no_loose_ends() -> AsyncIterator[None]:
    """Fails a test whose event loop complains: of a task that died unheard, or of a callback that raised."""
    complaints: list[str] = []

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        complaints.append(f"{context['message']}: {context.get('exception')!r}")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(complain)
    # What was there before is no part of the test, and looking through it would take longer than the test.
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()
    # A process of ours that ran inside the test has taken over what stops pytest.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    assert complaints == []


async def soon(awaitable: Awaitable[T]) -> T:
    """What is awaited, if it comes before the test loses its patience."""
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def eventually(holds: Callable[[], object]) -> None:
    """Returns once `holds()` is true, for what nobody tells of: lets the event loop turn until then."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0)


async def where_to(
    client: RoutingClient, facts: RouteFacts, abandoned: tuple[Ticket, ...] = (), timeout_s: float | None = None
) -> Route:
    """Asks for a route and waits for the answer; who is cancelled asks no more."""
    answer: asyncio.Future[Route] = asyncio.get_running_loop().create_future()

    def answered(route: Route | LoadBalancerError) -> None:
        if isinstance(route, LoadBalancerError):
            answer.set_exception(route)
        else:
            answer.set_result(route)

    question = client.ask(facts, answered, abandoned, timeout_s)
    try:
        return await answer
    except asyncio.CancelledError:
        # What had come already is given back by who heard it.
        question.cancel()
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            client.release(answer.result().ticket)
        raise


class ReadCall:
    """A call whose events wait for who reads them."""

    def __init__(self, client: GenerationClient, request: GenerationRequest) -> None:
        self.inbox = Inbox()
        self.call = client.begin(request, self.inbox.take)
        self.events = self.inbox.events
        self.cancel = self.call.cancel


def begin(client: GenerationClient, request: GenerationRequest) -> ReadCall:
    """Sends a request whose events will be read."""
    return ReadCall(client, request)


async def all_events(call: ReadCall) -> list[Event]:
    """Every event of a call up to its end."""
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        while not events or not isinstance(events[-1], (Finished, Failed)):
            events += await call.events()
    return events


async def failure_of(call: ReadCall) -> LoadBalancerError:
    """The error in which a call ends."""
    last = (await all_events(call))[-1]
    assert isinstance(last, Failed), last
    return last.error


async def in_state(scheduler: SchedulerHost, worker_id: str, state: EndpointState) -> None:
    """Waits until the scheduler sees a worker in this state."""

    def holds() -> bool:
        endpoint = scheduler.endpoint(worker_id)
        return endpoint is not None and endpoint.state is state

    await scheduler.state.happened.until(holds)
