"""Requests that wait in the scheduler, through either door: answered later, called off for nothing, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import pytest

from lbcore.api.v1 import routing_pb2, routing_pb2_grpc
from lbcore.deadlines import Deadlines, Expiring
from lbcore.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LoadBalancerError,
    NoReadyWorker,
    RateLimited,
    RetryLater,
    Saturated,
    SchedulerLost,
)
from lbcore.pool_events import Reported
from lbcore.router import QueueLimits
from lbcore.types import Capacity, Epoch, LoadReport, Route, RouteFacts, TicketPhase, TicketUpdate
from lbcore.wire import routing_client
from lbcore.wire.convert import route_from_proto, write_facts
from lbcore.wire.routing_client import SILENCE_S, WAITING_GRACE_S, Question
from lbcore.wire.status import error_from_failure, error_from_rpc
from tests.fakes import settle
from tests.fleet import MODEL, spec
from tests.wire.conftest import SchedulerHost, Wire, eventually, fixture, soon, where_to

ONE = Capacity(max_sequences=1)
FACTS = RouteFacts("r", MODEL, prompt_bytes=400)

Ask = Callable[..., Awaitable[Route]]
"""Takes the facts, and `timeout_s`."""


def question_of(facts: RouteFacts, timeout_s: float | None = None) -> routing_pb2.RouteRequest:
    """A question as it travels."""
    message = routing_pb2.RouteRequest()
    write_facts(facts, (), timeout_s, message)
    return message


async def unary(stub: routing_pb2_grpc.RoutingServiceStub, facts: RouteFacts, timeout_s: float | None = None) -> Route:
    try:
        return route_from_proto(await stub.Route(question_of(facts, timeout_s)))
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error


@fixture(params=["Route", "RouteStream"])
async def ask(request: pytest.FixtureRequest, wire: Wire, scheduler: SchedulerHost) -> Ask:
    return door(request.param, wire, scheduler)


def door(name: str, wire: Wire, scheduler: SchedulerHost) -> Ask:
    if name == "Route":
        return partial(unary, wire.routing_stub(scheduler))
    return partial(where_to, wire.routing_client(scheduler))


def begin(asking: Awaitable[Route]) -> asyncio.Future[Route]:
    return asyncio.ensure_future(asking)


def free(scheduler: SchedulerHost, route: Route, sequence: int = 1) -> None:
    """The worker reports that a request is done."""
    update = TicketUpdate(route.ticket, TicketPhase.FINISHED)
    report = LoadReport(sequence, ticket_updates=(update,))
    scheduler.state.handle(Reported(route.target.worker_id, Epoch(1), report))


async def so_many_wait(scheduler: SchedulerHost, number: int) -> None:
    await scheduler.state.happened.until(lambda: scheduler.waiting() == number)


async def refusal(asking: Awaitable[Route]) -> LoadBalancerError:
    with pytest.raises(LoadBalancerError) as caught:
        await soon(asking)
    return caught.value


def occupied(scheduler: SchedulerHost) -> Route:
    """Makes known a worker for one request, which has one."""
    scheduler.join(spec(capacity=ONE))
    return scheduler.route(FACTS)


async def test_a_request_waits_until_a_report_frees_a_worker(scheduler: SchedulerHost, ask: Ask) -> None:
    first = occupied(scheduler)
    asking = begin(ask(FACTS))
    await so_many_wait(scheduler, 1)
    assert not asking.done()
    free(scheduler, first)
    route = await soon(asking)
    assert route.target.worker_id == "w0"
    assert route.ticket != first.ticket
    assert (scheduler.waiting(), scheduler.credit()[0]) == (0, 1)


async def test_a_request_whose_time_is_over_while_it_waits_hears_so(scheduler: SchedulerHost, ask: Ask) -> None:
    occupied(scheduler)
    asking = begin(ask(FACTS, timeout_s=60.0))
    await so_many_wait(scheduler, 1)
    await scheduler.clock.elapse(59.9)
    assert scheduler.waiting() == 1
    await scheduler.clock.elapse(0.2)
    assert isinstance(await refusal(asking), DeadlineExceeded)
    assert scheduler.credit()[0] == 1


async def test_who_goes_away_while_it_waits_leaves_nothing_behind(scheduler: SchedulerHost, ask: Ask) -> None:
    first = occupied(scheduler)
    gone, other = begin(ask(FACTS)), begin(ask(FACTS))
    await so_many_wait(scheduler, 2)
    gone.cancel()
    await so_many_wait(scheduler, 1)
    free(scheduler, first)
    assert await soon(other)
    assert scheduler.credit()[0] == 1


async def test_the_urgent_are_served_first(scheduler: SchedulerHost, ask: Ask) -> None:
    running = occupied(scheduler)
    askings = {}
    for number, priority in enumerate((0, -5, 7), start=1):
        askings[priority] = begin(ask(FACTS._replace(priority=priority)))
        await so_many_wait(scheduler, number)
    for sequence, priority in enumerate((7, 0, -5), start=1):
        free(scheduler, running, sequence)
        running = await soon(askings[priority])
    assert scheduler.waiting() == 0


@pytest.mark.parametrize("name", ["Route", "RouteStream"])
@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        (QueueLimits(late_binding=False, max_requests=0), Saturated),
        (QueueLimits(late_binding=False, max_tenant_requests=0), RateLimited),
    ],
    ids=["queue", "tenant"],
)
async def test_who_may_not_wait_is_told_when_to_come_back(
    wire: Wire, name: str, limits: QueueLimits, kind: type[RetryLater]
) -> None:
    scheduler = await wire.scheduler(limits)
    occupied(scheduler)
    error = await refusal(door(name, wire, scheduler)(FACTS._replace(tenant="a")))
    assert type(error) is kind
    assert isinstance(error, RetryLater)
    assert error.retry_after_s >= 1.0


async def test_a_caller_of_route_with_a_deadline_of_its_own_leaves_nothing_behind(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    occupied(scheduler)
    call = wire.routing_stub(scheduler).Route(question_of(FACTS), timeout=0.05)
    await so_many_wait(scheduler, 1)
    with pytest.raises(grpc.RpcError):
        await soon(call)
    await so_many_wait(scheduler, 0)


async def test_a_stream_that_ends_withdraws_all_that_wait_on_it(wire: Wire, scheduler: SchedulerHost) -> None:
    first = occupied(scheduler)
    client, other = wire.routing_client(scheduler), wire.routing_client(scheduler)
    askings = [begin(where_to(client, FACTS)) for _ in range(3)]
    await so_many_wait(scheduler, 3)
    staying = begin(where_to(other, FACTS))
    await so_many_wait(scheduler, 4)
    await client.close()
    for asking in askings:
        assert isinstance(await refusal(asking), NoReadyWorker)
    await so_many_wait(scheduler, 1)
    free(scheduler, first)
    assert await soon(staying)
    assert scheduler.credit()[0] == 1


async def test_a_scheduler_that_dies_ends_what_waits_there(wire: Wire, scheduler: SchedulerHost) -> None:
    occupied(scheduler)
    asking = begin(where_to(wire.routing_client(scheduler), FACTS, timeout_s=60.0))
    await so_many_wait(scheduler, 1)
    await scheduler.stop()
    assert isinstance(await refusal(asking), NoReadyWorker)


class Kept(Deadlines):
    """Deadlines that come when a test says so, and how far away each is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[Expiring, float] = {}

    def add(self, expiring: Expiring, seconds: float) -> None:
        assert expiring not in self.open
        self.open[expiring] = seconds

    def drop(self, expiring: Expiring) -> None:
        self.open.pop(expiring, None)


class Listener:
    """A client on such deadlines, and what its questions heard."""

    def __init__(self, wire: Wire, scheduler: SchedulerHost) -> None:
        self.client = wire.routing_client(scheduler)
        self.deadlines = self.client._deadlines = Kept()
        self.heard: list[Route | LoadBalancerError] = []

    def ask(self, timeout_s: float | None) -> Question:
        return self.client.ask(FACTS, self.heard.append, (), timeout_s)

    def expire(self, question: Question) -> LoadBalancerError:
        question.expire()
        answer = self.heard.pop()
        assert isinstance(answer, LoadBalancerError)
        return answer


@pytest.mark.parametrize(
    ("timeout_s", "limit_s", "kind"),
    [
        (None, SILENCE_S, SchedulerLost),
        (60.0, SILENCE_S, SchedulerLost),
        (SILENCE_S, SILENCE_S, SchedulerLost),
        (1.0, 1.0, DeadlineExceeded),
    ],
)
async def test_a_scheduler_without_a_word_is_given_up_after_a_while(
    wire: Wire, scheduler: SchedulerHost, timeout_s: float | None, limit_s: float, kind: type[LoadBalancerError]
) -> None:
    occupied(scheduler)
    listener = Listener(wire, scheduler)
    question = listener.ask(timeout_s)
    assert listener.deadlines.open == {question: limit_s}
    assert type(listener.expire(question)) is kind
    # Its word comes at last, and what waits for nobody is withdrawn.
    await so_many_wait(scheduler, 1)
    await so_many_wait(scheduler, 0)
    assert listener.heard == []


@pytest.mark.parametrize("timeout_s", [2.0, 60.0])
async def test_of_a_request_that_waits_only_its_own_time_counts(
    wire: Wire, scheduler: SchedulerHost, timeout_s: float
) -> None:
    occupied(scheduler)
    listener = Listener(wire, scheduler)
    patient, question = listener.ask(None), listener.ask(timeout_s)
    await eventually(lambda: patient.is_waiting and question.is_waiting)
    assert listener.deadlines.open == {question: timeout_s + WAITING_GRACE_S}
    # A scheduler that has forgotten it, or whose clock stands still.
    assert type(listener.expire(question)) is DeadlineExceeded
    await so_many_wait(scheduler, 1)


async def test_while_the_scheduler_is_silent_nobody_waits_for_it(
    wire: Wire, scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.join(spec())
    listener = Listener(wire, scheduler)
    listener.client.was_silent()
    for _ in range(3):
        listener.ask(60.0)
    await settle()
    assert [type(answer) for answer in listener.heard] == [SchedulerLost] * 3
    assert not scheduler.state.events[1:]
    # Now and then one finds out whether it is back, which is not for who asks to wait for, and books nothing.
    monkeypatch.setattr(routing_client, "PROBE_S", 0.0)
    listener.ask(60.0)
    await eventually(lambda: len(listener.heard) == 4)
    assert isinstance(listener.heard[3], SchedulerLost)
    await eventually(lambda: listener.client._silent_since is None)
    await scheduler.state.happened.until(lambda: scheduler.credit() == (0, 0))
    listener.ask(60.0)
    await eventually(lambda: len(listener.heard) == 5)
    assert isinstance(listener.heard[4], Route)


async def test_an_answer_calls_the_deadline_of_who_waited_off(wire: Wire, scheduler: SchedulerHost) -> None:
    first = occupied(scheduler)
    listener = Listener(wire, scheduler)
    question = listener.ask(60.0)
    await eventually(lambda: question.is_waiting)
    free(scheduler, first)
    await eventually(lambda: listener.heard)
    assert isinstance(listener.heard[0], Route)
    assert listener.deadlines.open == {}


async def test_a_question_cancelled_before_it_is_known_to_wait_is_withdrawn(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    occupied(scheduler)
    heard: list[object] = []
    question = wire.routing_client(scheduler).ask(FACTS, heard.append)
    question.cancel()
    await so_many_wait(scheduler, 1)
    await so_many_wait(scheduler, 0)
    assert heard == []


async def test_a_question_that_waits_may_be_cancelled_twice_and_after_its_answer(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    first = occupied(scheduler)
    client = wire.routing_client(scheduler)
    heard: list[Route | LoadBalancerError] = []
    question, gone = client.ask(FACTS, heard.append), client.ask(FACTS, heard.append)
    await so_many_wait(scheduler, 2)
    for _ in range(2):
        gone.cancel()
    await so_many_wait(scheduler, 1)
    free(scheduler, first)
    await eventually(lambda: heard)
    [route] = heard
    other = begin(where_to(client, FACTS))
    await so_many_wait(scheduler, 1)
    assert isinstance(route, Route)
    question.cancel()
    question.cancel()
    # Who heard of the ticket gives it back.
    assert scheduler.credit()[0] == 1
    client.release(route.ticket)
    assert await soon(other)


class Stream:
    """A RouteStream, spoken by hand."""

    def __init__(self, wire: Wire, scheduler: SchedulerHost) -> None:
        self.call = wire.routing_stub(scheduler).RouteStream()

    async def send(self, *call_ids: int, withdrawn: tuple[int, ...] = (), **more: Any) -> None:
        calls = [routing_pb2.RouteCall(call_id=number, request=question_of(FACTS)) for number in call_ids]
        await self.call.write(routing_pb2.RouteStreamRequest(calls=calls, withdrawn_call_ids=withdrawn, **more))

    async def results(self) -> list[routing_pb2.RouteResult]:
        message: Any = await soon(self.call.read())
        return [*message.results]

    async def kinds(self) -> dict[int, str | None]:
        return {result.call_id: result.WhichOneof("result") for result in await self.results()}


async def test_that_a_request_waits_is_said_at_once_and_with_how_many(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec(capacity=ONE))
    stream = Stream(wire, scheduler)
    await stream.send(1, 2, 3)
    first, second, third = await stream.results()
    assert first.WhichOneof("result") == "response"
    assert [result.waiting.waiting_request_count for result in (second, third)] == [1, 2]
    free(scheduler, route_from_proto(first.response))
    [decision] = await stream.results()
    assert (decision.call_id, decision.WhichOneof("result")) == (2, "response")
    stream.call.cancel()


async def test_what_is_withdrawn_in_the_message_in_which_it_is_asked_does_not_wait(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    first = occupied(scheduler)
    stream = Stream(wire, scheduler)
    await stream.send(1, 2, withdrawn=(1, 1, 99))
    assert await stream.kinds() == {1: "waiting", 2: "waiting"}
    assert scheduler.waiting() == 1
    free(scheduler, first)
    assert await stream.kinds() == {2: "response"}
    await stream.send(3, withdrawn=(2,))
    assert await stream.kinds() == {3: "waiting"}
    assert scheduler.credit()[0] == 1
    stream.call.cancel()


async def test_a_number_that_is_in_use_is_refused_and_its_first_question_waits_on(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    first = occupied(scheduler)
    stream = Stream(wire, scheduler)
    await stream.send(1, 1)
    waiting, refused = await stream.results()
    assert waiting.WhichOneof("result") == "waiting"
    assert isinstance(error_from_failure(refused.failure), InvalidRequest)
    free(scheduler, first)
    assert await stream.kinds() == {1: "response"}
    stream.call.cancel()


async def test_tickets_given_back_with_a_question_serve_who_waits_already(wire: Wire, scheduler: SchedulerHost) -> None:
    first = occupied(scheduler)
    stream = Stream(wire, scheduler)
    await stream.send(1)
    assert await stream.kinds() == {1: "waiting"}
    await stream.send(2, abandoned_tickets=[first.ticket])
    heard: dict[int, str | None] = {}
    while len(heard) < 2:
        heard |= await stream.kinds()
    assert heard == {1: "response", 2: "waiting"}
    stream.call.cancel()


async def test_a_caller_that_has_said_all_still_hears_of_what_waits(wire: Wire, scheduler: SchedulerHost) -> None:
    first = occupied(scheduler)
    stream = Stream(wire, scheduler)
    await stream.send(1)
    await stream.call.done_writing()
    assert await stream.kinds() == {1: "waiting"}
    await settle()
    free(scheduler, first)
    assert await stream.kinds() == {1: "response"}
    assert await soon(stream.call.read()) is grpc.aio.EOF
    assert await stream.call.code() is grpc.StatusCode.OK
