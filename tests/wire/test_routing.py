"""RoutingService over real servers: every question gets its own answer, and what is booked for nobody is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import pytest

from lbcore.api.v1 import routing_pb2
from lbcore.errors import DeadlineExceeded, InvalidRequest, LoadBalancerError, ModelNotFound, NoReadyWorker
from lbcore.pool_events import Deregistered, Disconnected, DrainNoticed, Reported
from lbcore.types import (
    Capacity,
    EndpointState,
    Epoch,
    LoadReport,
    Route,
    RouteFacts,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)
from lbcore.wire import routing_client
from lbcore.wire.convert import route_from_proto, write_facts
from lbcore.wire.routing_client import RoutingClient
from lbcore.wire.status import error_from_rpc
from tests.fakes import settle
from tests.fleet import MODEL, spec
from tests.wire.conftest import LEASE_S, TICKET_S, SchedulerHost, Wire, eventually, fixture, soon, where_to

ONE_AT_A_TIME = Capacity(max_sequences=1)


def facts(model: str = MODEL, **more: Any) -> RouteFacts:
    return RouteFacts("r", model, **more)


def question_of(facts: RouteFacts) -> routing_pb2.RouteRequest:
    """A question as it travels."""
    message = routing_pb2.RouteRequest()
    write_facts(facts, (), None, message)
    return message


Ask = Callable[[RouteFacts], Awaitable[Route]]


@fixture(params=["Route", "RouteStream"])
async def ask(request: pytest.FixtureRequest, wire: Wire, scheduler: SchedulerHost) -> Ask:
    """The same question through either door; gRPC wants to be asked for channels inside the event loop."""
    if request.param == "RouteStream":
        return partial(where_to, wire.routing_client(scheduler))
    stub = wire.routing_stub(scheduler)

    async def unary(facts: RouteFacts) -> Route:
        try:
            return route_from_proto(await stub.Route(question_of(facts)))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    return unary


async def refusal(answer: Awaitable[Route]) -> LoadBalancerError:
    with pytest.raises(LoadBalancerError) as caught:
        await soon(answer)
    return caught.value


async def test_the_least_loaded_worker_is_named_with_the_others_behind_it(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec("w0"), spec("w1"), spec("w2"))
    for name, running in (("w0", 2), ("w1", 0), ("w2", 1)):
        scheduler.state.handle(Reported(WorkerId(name), Epoch(1), LoadReport(1, running_requests=running)))
    route = await soon(ask(facts()))
    assert route.target.worker_id == "w1"
    assert route.target.address == "w1:8000"
    assert [target.worker_id for target in route.fallbacks] == ["w2", "w0"]


async def test_a_route_is_booked_on_its_worker_under_its_own_ticket(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec())
    routes = [await soon(ask(facts(prompt_bytes=4000))) for _ in range(3)]
    requests, tokens = scheduler.credit()
    assert len({route.ticket for route in routes}) == 3
    assert 0 not in {route.ticket for route in routes}
    assert requests == 3
    assert tokens == 3000


async def test_workers_that_were_tried_are_left_out(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec("w0"), spec("w1"))
    tried = facts(tried=frozenset({WorkerId("w0")}))
    assert {(await soon(ask(tried))).target.worker_id for _ in range(4)} == {"w1"}
    all_tried = facts(tried=frozenset({WorkerId("w0"), WorkerId("w1")}))
    assert isinstance(await refusal(ask(all_tried)), NoReadyWorker)


async def test_a_model_that_nobody_ever_served_is_not_found(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec())
    error = await refusal(ask(facts("other")))
    assert isinstance(error, ModelNotFound)
    assert "`other`" in error.message


async def test_a_scheduler_that_knows_nobody_yet_says_later_rather_than_never(ask: Ask) -> None:
    assert isinstance(await refusal(ask(facts())), NoReadyWorker)


async def test_a_model_whose_last_worker_has_gone_is_out_of_service_not_unknown(
    scheduler: SchedulerHost, ask: Ask
) -> None:
    scheduler.join(spec())
    scheduler.state.handle(Deregistered(WorkerId("w0"), Epoch(1)))
    assert isinstance(await refusal(ask(facts())), NoReadyWorker)


async def test_a_draining_worker_is_not_named(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec())
    scheduler.state.handle(DrainNoticed(WorkerId("w0"), Epoch(1)))
    assert isinstance(await refusal(ask(facts())), NoReadyWorker)


async def test_a_question_without_a_model_is_refused_by_name(scheduler: SchedulerHost, ask: Ask) -> None:
    error = await refusal(ask(facts("")))
    assert isinstance(error, InvalidRequest)
    assert error.param == "model"


async def test_a_silent_worker_is_named_when_nobody_else_is_there(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec("w0"), spec("w1"))
    for name in ("w0", "w1"):
        scheduler.state.handle(Disconnected(WorkerId(name), Epoch(1), -1))
        route = await soon(ask(facts()))
    assert route.target.worker_id in ("w0", "w1")


async def test_many_questions_at_once_each_get_their_own_answer(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(*(spec(f"w{number}", models=[f"m{number}"]) for number in range(5)))
    client = wire.routing_client(scheduler)
    numbers = [number % 6 for number in range(300)]
    answers = await soon(
        asyncio.gather(*(where_to(client, facts(f"m{number}")) for number in numbers), return_exceptions=True)
    )
    for number, answer in zip(numbers, answers, strict=True):
        if number == 5:
            assert isinstance(answer, ModelNotFound)
        else:
            assert isinstance(answer, Route)
            assert answer.target.worker_id == f"w{number}"
    assert scheduler.credit()[0] == 250


async def test_a_thousand_questions_at_once_do_not_herd(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(*(spec(f"w{number}") for number in range(10)))
    client = wire.routing_client(scheduler)
    routes = await soon(asyncio.gather(*(where_to(client, facts(prompt_bytes=400)) for _ in range(1000))))
    names = [route.target.worker_id for route in routes]
    assert {names.count(name) for name in set(names)} == {100}


async def test_a_caller_cancelled_while_it_waits_leaves_nothing_booked(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    callers = [asyncio.ensure_future(where_to(client, facts(prompt_bytes=4000))) for _ in range(10)]
    await settle(1)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await scheduler.state.happened.until(lambda: scheduler.state.pool.snapshot(MODEL, 0).pick_count == 10)
    await scheduler.state.happened.until(lambda: scheduler.credit() == (0, 0))


async def test_a_caller_cancelled_as_its_answer_comes_leaves_nothing_booked(
    wire: Wire, scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    caller = asyncio.ensure_future(where_to(client, facts(prompt_bytes=4000)))

    def read_and_cancel(message: routing_pb2.RouteResponse) -> Route:
        asyncio.get_running_loop().call_soon(caller.cancel)
        return route_from_proto(message)

    monkeypatch.setattr(routing_client, "route_from_proto", read_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await soon(caller)
    await scheduler.state.happened.until(lambda: scheduler.credit() == (0, 0))


async def test_an_answer_that_comes_too_late_is_given_back(
    wire: Wire, scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.join(spec())
    late: list[Callable[[], None]] = []
    deliver = RoutingClient._deliver

    def deliver_late(client: RoutingClient, message: routing_pb2.RouteStreamResponse) -> None:
        late.append(lambda: deliver(client, message))
        scheduler.state.happened.tell()

    monkeypatch.setattr(RoutingClient, "_deliver", deliver_late)
    client = wire.routing_client(scheduler)
    with pytest.raises(DeadlineExceeded):
        await soon(where_to(client, facts(), timeout_s=0.01))
    await scheduler.state.happened.until(lambda: late)
    assert scheduler.credit()[0] == 1
    late[0]()
    await scheduler.state.happened.until(lambda: scheduler.credit() == (0, 0))


async def test_an_abandoned_ticket_makes_room_for_the_same_request(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec(capacity=ONE_AT_A_TIME))
    client = wire.routing_client(scheduler)
    first = await soon(where_to(client, facts()))
    second = await soon(where_to(client, facts(), abandoned=(first.ticket,)))
    assert second.ticket != first.ticket
    assert scheduler.credit()[0] == 1


async def test_abandoned_tickets_are_given_back_even_when_the_answer_is_a_refusal(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    route = await soon(where_to(client, facts()))
    question = where_to(client, facts(tried=frozenset({WorkerId("w0")})), abandoned=(route.ticket,))
    assert isinstance(await refusal(question), NoReadyWorker)
    assert scheduler.credit() == (0, 0)


async def test_release_counts_what_was_booked_once(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    stub = wire.routing_stub(scheduler)
    tickets = [(await stub.Route(question_of(facts()))).ticket for _ in range(3)]
    first = await stub.Release(routing_pb2.ReleaseRequest(tickets=[*tickets[:2], 0, 2**64 - 1]))
    second = await stub.Release(routing_pb2.ReleaseRequest(tickets=tickets))
    assert (first.released_count, second.released_count) == (2, 1)
    assert scheduler.credit() == (0, 0)


async def test_a_ticket_can_be_given_back_on_the_stream(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    client.release((await soon(where_to(client, facts()))).ticket)
    await scheduler.state.happened.until(lambda: scheduler.credit() == (0, 0))


async def test_a_ticket_can_be_given_back_though_its_stream_broke(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    route = await soon(where_to(client, facts()))
    await scheduler.stop()
    await scheduler.start()
    await refusal(where_to(client, facts("")))
    client.release(route.ticket)
    await scheduler.state.happened.until(lambda: scheduler.credit() == (0, 0))


async def test_a_dispatch_that_never_reaches_its_worker_is_taken_back_in_time(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    scheduler.join(spec())
    await soon(where_to(wire.routing_client(scheduler), facts()))
    for second in range(int(TICKET_S)):
        assert scheduler.credit()[0] == 1
        scheduler.state.handle(Reported(WorkerId("w0"), Epoch(1), LoadReport(second + 1)))
        scheduler.elapse(1)
    assert scheduler.credit() == (0, 0)


async def test_tickets_of_an_earlier_scheduler_mean_nothing_to_this_one(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    old = await soon(where_to(client, facts()))
    await scheduler.stop()
    scheduler.forget()
    scheduler.join(spec())
    await scheduler.start()
    new = await _until_answered(client)
    client.release(old.ticket)
    await soon(where_to(client, facts()))
    assert new.ticket != old.ticket
    assert scheduler.credit()[0] == 2


async def test_without_a_scheduler_every_question_is_refused_at_once(wire: Wire, scheduler: SchedulerHost) -> None:
    await scheduler.stop()
    client = wire.routing_client(scheduler)
    async with asyncio.timeout(2):
        for _ in range(3):
            assert isinstance(await refusal(where_to(client, facts())), NoReadyWorker)


async def test_questions_that_wait_when_the_scheduler_dies_are_refused(
    wire: Wire, scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    await soon(where_to(client, facts()))
    asked = asyncio.Event()

    def keep_to_oneself(client: RoutingClient, message: routing_pb2.RouteStreamResponse) -> None:
        asked.set()

    monkeypatch.setattr(RoutingClient, "_deliver", keep_to_oneself)
    deaf = wire.routing_client(scheduler)
    waiting = [asyncio.ensure_future(where_to(deaf, facts())) for _ in range(3)]
    await soon(asked.wait())
    await scheduler.stop()
    for question in waiting:
        assert isinstance(await refusal(question), NoReadyWorker)


async def test_a_scheduler_back_on_its_port_answers_the_next_question(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    await soon(where_to(client, facts()))
    await scheduler.stop()
    await scheduler.start()
    assert (await _until_answered(client)).target.worker_id == "w0"


async def test_a_client_that_has_said_all_still_gets_its_answers(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    stream = wire.routing_stub(scheduler).RouteStream()
    calls = [routing_pb2.RouteCall(call_id=number, request=question_of(facts())) for number in range(3)]
    await stream.write(routing_pb2.RouteStreamRequest(calls=calls))
    await stream.done_writing()
    assert sorted(result.call_id for result in (await soon(stream.read())).results) == [0, 1, 2]
    assert await soon(stream.read()) is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


_MOST = 2**32 - 1


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"model": MODEL, "prefix_hashes": [1, 2, 3]},
        {"model": MODEL, "prefix_hashes": [1, 2, 3], "prefix_block_byte_count": 0, "prompt_byte_count": 0},
        {"model": MODEL, "prefix_hashes": [7] * 10_000, "prefix_block_byte_count": _MOST, "prompt_byte_count": 1},
        {"model": MODEL, "prefix_hashes": range(100_000), "prefix_block_byte_count": 1, "prompt_byte_count": _MOST},
        {"model": MODEL, "prompt_byte_count": _MOST, "max_output_token_count": _MOST, "priority": -(2**31)},
        {"model": MODEL, "abandoned_tickets": [0, 1, 2**64 - 1] * 1000},
        {"model": MODEL, "tried_worker_ids": ["", "nobody", "\x00" * 1000]},
        {"model": "m" * 1_000_000},
    ],
    ids=["nothing", "no bytes", "zero", "one hash", "endless", "most", "tickets", "tried", "name"],
)
async def test_a_strange_question_spoils_no_other_on_its_stream(
    wire: Wire, scheduler: SchedulerHost, question: dict[str, Any]
) -> None:
    scheduler.join(spec())
    stream = wire.routing_stub(scheduler).RouteStream()
    strange = routing_pb2.RouteCall(call_id=1, request=routing_pb2.RouteRequest(**question))
    good = routing_pb2.RouteCall(call_id=2, request=question_of(facts()))
    for calls in ([strange, good], [strange, good]):
        await stream.write(routing_pb2.RouteStreamRequest(calls=calls))
        results = {result.call_id: result for result in (await soon(stream.read())).results}
        assert results[1].WhichOneof("result")
        assert results[2].HasField("response")
    stream.cancel()


async def test_a_watcher_is_told_the_whole_table_first_and_then_its_changes(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    scheduler.join(spec("w0"))
    steps = aiter(wire.routing_client(scheduler).watch())
    first = await soon(anext(steps))
    assert first.snapshot
    assert [status.spec.worker_id for status in first.workers] == ["w0"]

    scheduler.join(spec("w1"))
    joined = await soon(anext(steps))
    assert (joined.snapshot, joined.removed) == (False, ())
    assert [(status.spec.worker_id, status.state) for status in joined.workers] == [("w1", EndpointState.READY)]

    scheduler.state.handle(DrainNoticed(WorkerId("w1"), Epoch(1)))
    drained = await soon(anext(steps))
    assert [(status.spec.worker_id, status.state) for status in drained.workers] == [("w1", EndpointState.DRAINING)]

    scheduler.state.handle(Disconnected(WorkerId("w0"), Epoch(1), -1))
    silent = await soon(anext(steps))
    assert [(status.spec.worker_id, status.state) for status in silent.workers] == [("w0", EndpointState.SILENT)]

    scheduler.elapse(LEASE_S)
    lost = await soon(anext(steps))
    assert (lost.workers, lost.removed) == ((), ("w0", "w1"))


async def test_a_replaced_worker_is_one_step_with_its_new_epoch(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0", epoch=1))
    steps = aiter(wire.routing_client(scheduler).watch())
    await soon(anext(steps))
    scheduler.join(spec("w0", epoch=2))
    step = await soon(anext(steps))
    assert [status.spec.epoch for status in step.workers] == [2]
    assert step.removed == ()


async def test_a_watch_ends_in_an_error_when_the_scheduler_goes(wire: Wire, scheduler: SchedulerHost) -> None:
    steps = aiter(wire.routing_client(scheduler).watch())
    await soon(anext(steps))
    await scheduler.stop()
    with pytest.raises(LoadBalancerError):
        await soon(anext(steps))


async def test_a_watch_of_an_absent_scheduler_ends_in_an_error(wire: Wire, scheduler: SchedulerHost) -> None:
    await scheduler.stop()
    with pytest.raises(LoadBalancerError):
        await soon(anext(aiter(wire.routing_client(scheduler).watch())))


async def test_a_watcher_that_is_gone_is_forgotten(wire: Wire, scheduler: SchedulerHost) -> None:
    call = wire.routing_stub(scheduler).WatchWorkers(routing_pb2.WatchWorkersRequest())
    await soon(call.read())
    assert scheduler.state.table.watcher_count == 1
    call.cancel()
    other = wire.routing_stub(scheduler).WatchWorkers(routing_pb2.WatchWorkersRequest())
    await soon(other.read())
    await eventually(lambda: scheduler.state.table.watcher_count == 1)


async def test_the_table_tells_credit_and_load(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    one = await soon(where_to(client, facts(prompt_bytes=400)))
    await soon(where_to(client, facts(prompt_bytes=400)))
    accepted = TicketUpdate(one.ticket, TicketPhase.ACCEPTED)
    scheduler.state.handle(
        Reported(WorkerId("w0"), Epoch(1), LoadReport(1, running_requests=1, ticket_updates=(accepted,)))
    )
    [status] = (await soon(anext(aiter(client.watch())))).workers
    assert (status.load.running_requests, status.credit_requests, status.credit_tokens) == (1, 1, 100)


async def _until_answered(client: RoutingClient) -> Route:
    """The first answer; the connection of a client whose scheduler was away may need a moment."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await where_to(client, facts())
            except NoReadyWorker:
                await asyncio.sleep(0)
