from __future__ import annotations

from itertools import islice

import pytest

from bench.dataplane.meter import Spent
from bench.routing.client import Client, Counts, NoFigures, calls, figures_between, prompt_bytes, prompt_tokens
from bench.routing.workers import DECODE_S, OUTPUT_TOKENS, Engine, Fleet, tokens_per_s
from lbcore.api.v1 import routing_pb2
from worker.engine import EngineLoad
from worker.load import LoadTracker

BLOCKS = 5
NOTHING = Counts(0, 0, 0.0, 0, 0, 0)


def test_questions_are_what_the_protocol_says() -> None:
    message = routing_pb2.RouteStreamRequest.FromString(b"".join(islice(calls(BLOCKS), 2)))
    assert [call.call_id for call in message.calls] == [1, 2]
    first, second = (call.request for call in message.calls)
    assert first.prompt_byte_count == prompt_bytes(BLOCKS)
    assert len(first.prefix_hashes) == len(second.prefix_hashes) == BLOCKS
    assert not {*first.prefix_hashes} & {*second.prefix_hashes}


def test_a_fleet_computes_as_many_prompts_as_it_is_there_for() -> None:
    tokens = prompt_tokens(BLOCKS)
    load = LoadTracker()
    engine = Engine(load, tokens_per_s(100.0, workers=4, prompt_tokens=tokens))
    for ticket in range(1, 51):
        engine.take(ticket, tokens, 0.0)
    engine.pass_time(1.0 + 1e-9)
    report = load.look(EngineLoad(prefilled_tokens=0), 1.0)
    assert report.queued_prompt_tokens == 25 * tokens
    assert report.output_token_total == int(25 * (1 - DECODE_S)) * OUTPUT_TOKENS


def test_prompts_are_computed_one_after_another() -> None:
    load = LoadTracker()
    tokens = prompt_tokens(BLOCKS)
    engine = Engine(load, tokens_per_s(10.0, workers=1, prompt_tokens=tokens))
    engine.take(1, tokens, 0.0)
    engine.take(2, tokens, 0.0)
    assert engine.pass_time(0.05)
    report = load.look(EngineLoad(prefilled_tokens=0), 0.05)
    assert (report.queued_requests, report.running_requests, report.queued_prompt_tokens) == (1, 1, 2 * tokens)
    engine.pass_time(0.101)
    assert load.look(EngineLoad(prefilled_tokens=0), 0.101).queued_prompt_tokens == tokens
    assert not engine.pass_time(0.102)


@pytest.fixture
def client() -> Client:
    return Client("nowhere", Fleet(1, "nowhere", 1e6), BLOCKS, unanswered=1)


def result(call_id: int, **kind: object) -> routing_pb2.RouteStreamResponse:
    message = routing_pb2.RouteResult(call_id=call_id, **kind)  # type: ignore[arg-type]
    return routing_pb2.RouteStreamResponse(results=[message])


def route() -> routing_pb2.RouteResponse:
    return routing_pb2.RouteResponse(worker=routing_pb2.WorkerTarget(worker_id="10.0.0.0:8000"), ticket=7)


async def test_a_request_that_waits_is_no_answer_and_its_wait_counts(client: Client) -> None:
    assert client.heard(result(1, waiting=routing_pb2.RouteWaiting()), 1.0) == 0
    assert not client.all_went
    assert client.heard(result(1, response=route()), 1.5) == 1
    assert (client.routed, client.waited, client.waited_s) == (1, 1, 0.5)
    assert not client.all_went


async def test_a_request_that_goes_at_once_did_not_wait(client: Client) -> None:
    client.heard(result(1, response=route()), 1.0)
    assert (client.routed, client.waited) == (1, 0)
    assert client.all_went


async def test_a_refusal_is_no_route(client: Client) -> None:
    failure = routing_pb2.RouteResult().failure
    failure.reason = "SATURATED"
    assert client.heard(result(1, failure=failure), 1.0) == 1
    assert (client.routed, client.refused, client.why) == (0, 1, "SATURATED")
    assert not client.all_went


def test_figures_are_of_what_happened_between() -> None:
    after = Counts(routed=200, waited=50, waited_s=5.0, refused=0, messages=100, reports=20)
    figures = figures_between(NOTHING, after, Spent({"scheduler": 0.5}, 2.0))
    assert figures.routes_per_s == 100
    assert figures.cpu_us_per_route == 2500
    assert (figures.waited_ratio, figures.wait_ms) == (0.25, 100)


def test_of_nothing_there_are_no_figures() -> None:
    with pytest.raises(NoFigures):
        figures_between(NOTHING, NOTHING, Spent({"scheduler": 0.1}, 1.0))
