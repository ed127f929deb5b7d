"""Explanations over real servers: with the decision on both calls, and of a decision that is only thought through."""

from __future__ import annotations

import grpc
import pytest

from lbcore.api.v1 import admin_pb2, routing_pb2
from lbcore.errors import ModelNotFound, NoReadyWorker
from lbcore.pool_events import Released
from lbcore.router import QueueLimits
from lbcore.types import Capacity, PolicyAssignment, Role, RouteFacts, WorkerId
from lbcore.wire.admin_client import explain_route
from lbcore.wire.convert import write_facts
from lbcore.wire.status import error_from_rpc
from tests.fleet import MODEL, measured, spec
from tests.wire.conftest import SchedulerHost, Wire, soon, where_to

FACTS = RouteFacts("r", MODEL, 4000, explain=True)
ONE = Capacity(max_sequences=1)


def question(facts: RouteFacts) -> routing_pb2.RouteRequest:
    message = routing_pb2.RouteRequest()
    write_facts(facts, (), None, message)
    return message


async def test_a_route_is_explained_when_it_asks_to_be(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0"), spec("w1"))
    stub = wire.routing_stub(scheduler)
    response = await soon(stub.Route(question(FACTS)))
    assert {one.worker_id for one in response.explanation.candidates} == {"w0", "w1"}
    assert response.explanation.policy == "least_requests"
    assert response.explanation.prompt_token_count == 1000
    assert response.explanation.reason == "drawn from the 2 cheapest of 2, at 0 each"
    assert not (await soon(stub.Route(question(FACTS._replace(explain=False))))).HasField("explanation")


async def test_so_is_one_on_the_stream_among_others(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0"))
    client = wire.routing_client(scheduler)
    explained = await soon(where_to(client, FACTS))
    plain = await soon(where_to(client, FACTS._replace(explain=False)))
    assert explained.explanation is not None
    assert explained.explanation.reason == "the only one that can take it"
    assert plain.explanation is None


async def test_so_is_one_that_waited_with_how_long(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0", capacity=ONE))
    first = scheduler.route(RouteFacts("first", MODEL))
    call = wire.routing_stub(scheduler).Route(question(FACTS))
    await scheduler.state.happened.until(lambda: scheduler.waiting() == 1)
    scheduler.clock.advance(0.25)
    scheduler.state.handle(Released((first.ticket,)))
    response = await soon(call)
    assert response.explanation.waited_ms == pytest.approx(250)
    assert response.explanation.candidates[0].worker_id == "w0"


async def test_many_explanations_at_once_are_not_one_message(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0"))
    stream = wire.routing_stub(scheduler).RouteStream()
    calls = [routing_pb2.RouteCall(call_id=number, request=question(FACTS)) for number in range(3)]
    calls.append(routing_pb2.RouteCall(call_id=3, request=routing_pb2.RouteRequest(explain=True)))
    await stream.write(routing_pb2.RouteStreamRequest(calls=calls))
    results: dict[int, routing_pb2.RouteResult] = {}
    while len(results) < 4:
        message = await soon(stream.read())
        results |= {result.call_id: result for result in message.results}
    assert [results[number].response.explanation.policy for number in range(3)] == ["least_requests"] * 3
    assert results[3].failure.message == "model is empty"
    stream.cancel()


async def test_thinking_a_request_through_books_nothing_counts_nothing_and_uses_no_chance(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    scheduler.join(*(spec(f"w{number}") for number in range(8)))
    thought = [(await soon(explain_route(scheduler.address, FACTS)))[0] for _ in range(3)]
    assert scheduler.credit() == (0, 0)
    assert scheduler.state.pool.snapshot(MODEL, 0.0).pick_count == 0
    route = scheduler.route(FACTS)
    assert thought == [route.target.worker_id] * 3


async def test_a_request_that_would_wait_goes_to_nobody(wire: Wire) -> None:
    scheduler = await wire.scheduler(QueueLimits())
    scheduler.state.assign(PolicyAssignment("", Role.MIXED, "cost"))
    scheduler.join(spec("w0"))
    scheduler.state.handle(measured("w0"))
    worker_id, explanation = await soon(explain_route(scheduler.address, FACTS))
    assert (worker_id, explanation.reason) == (WorkerId("w0"), "the only one that can take it")
    scheduler.route(RouteFacts("long", MODEL, 3000))
    worker_id, explanation = await soon(explain_route(scheduler.address, FACTS))
    assert worker_id is None
    assert explanation.reason == "would wait for w0: the only one that can take it"
    assert explanation.candidates[0].terms["wait"] > 0


async def test_full_workers_are_left_out_with_the_reason(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0", capacity=ONE))
    scheduler.route(RouteFacts("first", MODEL))
    worker_id, explanation = await soon(explain_route(scheduler.address, FACTS))
    assert worker_id is None
    assert explanation.reason == "nobody of 1 can take it; left out: 1 by has_room"
    assert explanation.candidates[0].excluded_by == "has_room"


async def test_an_unknown_model_and_a_missing_scheduler_are_errors(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0"))
    with pytest.raises(ModelNotFound, match="No worker serves the model `gone`"):
        await soon(explain_route(scheduler.address, RouteFacts("r", "gone")))
    with pytest.raises(grpc.RpcError) as caught:
        await wire.admin_stub(scheduler).ExplainRoute(admin_pb2.ExplainRouteRequest())
    assert error_from_rpc(caught.value).message == "model is empty"
    await scheduler.stop()
    with pytest.raises(NoReadyWorker, match="No scheduler answers"):
        await soon(explain_route(scheduler.address, FACTS))
