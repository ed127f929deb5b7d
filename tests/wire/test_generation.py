"""GenerationService over real servers: two doors to one room, and nothing left behind whoever goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import orjson
import pytest

from lbcore.api.v1 import generation_pb2
from lbcore.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    Saturated,
    WorkerUnreachable,
)
from lbcore.generation import Delta, Dialect, Embedding, Event, Failed, Finished, GenerationRequest, Started
from lbcore.types import Ticket, TicketPhase
from lbcore.wire.clients import GenerationClient, generate
from lbcore.wire.convert import event_from_proto
from lbcore.wire.outbox import MAX_BATCH_BYTES
from lbcore.wire.status import error_from_rpc
from tests.wire.conftest import Wire, WorkerHost, all_events, begin, failure_of, soon
from worker.engine import EngineLoad


def ask(
    request_id: str = "r", *, ticket: int = 0, timeout_s: float | None = None, body: bytes = b"{}"
) -> GenerationRequest:
    return GenerationRequest(request_id, Dialect.CHAT, body, Ticket(ticket), timeout_s)


async def through_generate(host: WorkerHost, request: GenerationRequest) -> list[Event]:
    """The events of a request over Generate, its failure as the last one."""
    events: list[Event] = []

    async def collect() -> None:
        async for event in generate(host.address, request):
            events.append(event)  # noqa: PERF401 what came before a failure counts too

    try:
        await soon(collect())
    except LoadBalancerError as error:
        events.append(Failed(error))
    return events


async def through_stream(host: WorkerHost, request: GenerationRequest) -> list[Event]:
    """The same over GenerateStream."""
    client = GenerationClient(host.address)
    try:
        return await all_events(begin(client, request))
    finally:
        await client.close()


Door = Callable[[WorkerHost, GenerationRequest], asyncio.Future[list[Event]]]
both_doors = pytest.mark.parametrize("door", [through_generate, through_stream], ids=["Generate", "GenerateStream"])


def told(host: WorkerHost) -> dict[int, TicketPhase]:
    """What the worker would report of each ticket."""
    return {update.ticket: update.phase for update in host.load.look(EngineLoad(), 0.0).ticket_updates}


@both_doors
async def test_an_answer_comes_whole_and_in_order(worker: WorkerHost, door: Door) -> None:
    answer = asyncio.ensure_future(door(worker, ask()))
    taken = await worker.engine.next()
    taken.answer("one", "two", "three")
    assert await answer == [
        Started(10),
        Delta(text="one"),
        Delta(text="two"),
        Delta(text="three"),
        Finished(10, 0, 3),
    ]


@both_doors
async def test_vectors_come_bit_for_bit_and_count_no_tokens(worker: WorkerHost, door: Door) -> None:
    request = GenerationRequest("r", Dialect.EMBEDDING, b'{"input": ["a", "b"]}', Ticket(4))
    answer = asyncio.ensure_future(door(worker, request))
    taken = await worker.engine.next()
    vectors = [Embedding(0, b"\x00\x00\x80\x7f\xff\x01\x02\x03"), Embedding(1, bytes(8))]
    taken.start(prompt_tokens=20)
    taken.emit(vectors[0])
    report = worker.load.look(EngineLoad(), 0.0)
    taken.emit(vectors[1])
    taken.finish(prompt_tokens=20, output_tokens=0)
    assert await answer == [Started(20), *vectors, Finished(20, 0, 0)]
    assert (taken.request.dialect, taken.request.body) == (Dialect.EMBEDDING, request.body)
    assert (report.running_requests, report.queued_prompt_tokens, report.tokens_in_flight) == (1, 0, 20)
    [update] = worker.load.look(EngineLoad(), 0.0).ticket_updates
    assert (update.phase, update.prompt_tokens, update.output_tokens) == (TicketPhase.FINISHED, 20, 0)


async def test_more_vectors_than_a_message_should_hold_arrive_in_order(wire: Wire, worker: WorkerHost) -> None:
    call = begin(wire.generation_client(worker), GenerationRequest("r", Dialect.EMBEDDING, b"{}"))
    taken = await worker.engine.next()
    size = MAX_BATCH_BYTES // 8
    for index in range(20):
        taken.emit(Embedding(index, bytes([index]) * size))
    taken.finish()
    *vectors, end = await all_events(call)
    assert vectors == [Embedding(index, bytes([index]) * size) for index in range(20)]
    assert isinstance(end, Finished)


@pytest.mark.parametrize("wants_token_ids", [True, False])
@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_caller_gets_token_ids_when_it_wants_them_and_its_answer_in_one_piece_when_it_says_so(
    worker: WorkerHost, wants_token_ids: bool, is_whole: bool
) -> None:
    request = ask()._replace(wants_token_ids=wants_token_ids, is_whole=is_whole)
    answer = asyncio.ensure_future(through_stream(worker, request))
    taken = await worker.engine.next()
    said = [Delta(text=f"{number} ", token_ids=(number,)) for number in range(10)]
    taken.start()
    for delta in said:
        taken.emit(delta)
    taken.finish()
    started, *deltas, end = await answer
    assert (started, end) == (Started(10), Finished(10, 0, 1))
    assert len(deltas) == (2 if is_whole else 10)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "".join(one.text for one in said)
    token_ids = [token for delta in deltas if isinstance(delta, Delta) for token in delta.token_ids]
    assert token_ids == ([*range(10)] if wants_token_ids else [])


async def test_generate_tells_every_token_and_its_id_whatever_is_asked_of_streams(worker: WorkerHost) -> None:
    request = ask()._replace(wants_token_ids=False, is_whole=True)
    answer = asyncio.ensure_future(through_generate(worker, request))
    taken = await worker.engine.next()
    taken.start()
    for number in range(5):
        taken.emit(Delta(text="a", token_ids=(number,)))
    taken.finish()
    deltas = [event for event in await answer if isinstance(event, Delta)]
    assert deltas == [Delta(text="a", token_ids=(number,)) for number in range(5)]


@both_doors
async def test_the_engine_gets_the_body_byte_for_byte(worker: WorkerHost, door: Door) -> None:
    body = b'{"a":1.0000000000000000001,\n "unknown": "\xc3\xa4"}'
    answer = asyncio.ensure_future(door(worker, ask(body=body, ticket=5)))
    taken = await worker.engine.next()
    taken.finish()
    await answer
    assert taken.request.body == body
    assert taken.request.ticket == 5


@both_doors
async def test_the_engine_s_error_arrives_as_it_is(worker: WorkerHost, door: Door) -> None:
    answer = asyncio.ensure_future(door(worker, ask()))
    (await worker.engine.next()).fail(InvalidRequest("No.", param="messages[1].role", code="invalid_value"))
    [failed] = await answer
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, InvalidRequest)
    assert (failed.error.message, failed.error.param, failed.error.code) == (
        "No.",
        "messages[1].role",
        "invalid_value",
    )


@both_doors
async def test_an_event_that_no_message_can_carry_ends_its_request_here_and_in_the_engine(
    worker: WorkerHost, door: Door
) -> None:
    answer = asyncio.ensure_future(door(worker, ask(ticket=3)))
    taken = await worker.engine.next()
    taken.start()
    taken.emit(Delta(text="half a pair: \ud83d"))
    taken.say("and more")
    *_, failed = await answer
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, EngineFailed)
    await soon(worker.sessions.idle())
    assert worker.engine.aborted == ["r#1"]
    assert worker.sessions.ends == {EngineFailed.reason: 1}
    assert told(worker) == {3: TicketPhase.FINISHED}


@both_doors
async def test_a_request_that_ended_is_not_aborted_at_the_engine(worker: WorkerHost, door: Door) -> None:
    first = asyncio.ensure_future(door(worker, ask()))
    (await worker.engine.next()).answer("one")
    await first
    second = asyncio.ensure_future(door(worker, ask()))
    (await worker.engine.next()).fail(EngineFailed("No."))
    await second
    await worker.emptied()
    assert worker.engine.aborted == []


@both_doors
async def test_a_full_worker_refuses_and_tells_the_ticket_s_end(wire: Wire, door: Door) -> None:
    worker = await wire.worker(capacity=1)
    client = wire.generation_client(worker)
    begin(client, ask("first"))
    await worker.engine.next()
    [failed] = await door(worker, ask("second", ticket=7))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Saturated)
    assert told(worker) == {7: TicketPhase.FINISHED}
    assert len(worker.engine.requests) == 1


@both_doors
async def test_a_draining_worker_refuses_and_lets_the_rest_finish(wire: Wire, worker: WorkerHost, door: Door) -> None:
    running = begin(wire.generation_client(worker), ask("first"))
    taken = await worker.engine.next()
    worker.sessions.refusal = WorkerUnreachable("The worker is draining.")
    [failed] = await door(worker, ask("second", ticket=7))
    taken.answer("done")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, WorkerUnreachable)
    assert told(worker) == {7: TicketPhase.FINISHED}
    assert (await all_events(running))[-1] == Finished(10, 0, 1)


@both_doors
async def test_a_deadline_ends_the_request_here_and_in_the_engine(worker: WorkerHost, door: Door) -> None:
    answer = asyncio.ensure_future(door(worker, ask(timeout_s=0.01)))
    (await worker.engine.next()).start()
    failed = (await answer)[-1]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, DeadlineExceeded)
    assert worker.engine.aborted == ["r#1"]
    await worker.emptied()


@both_doors
async def test_an_aborted_request_ends_as_cancelled(wire: Wire, worker: WorkerHost, door: Door) -> None:
    answer = asyncio.ensure_future(door(worker, ask("r")))
    await worker.engine.next()
    reply = await wire.generation_stub(worker).Abort(generation_pb2.AbortRequest(request_id="r"))
    failed = (await answer)[-1]
    assert reply.found
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Cancelled)


@both_doors
async def test_the_load_is_back_to_nothing_after_any_end(worker: WorkerHost, door: Door) -> None:
    good = asyncio.ensure_future(door(worker, ask(ticket=1)))
    (await worker.engine.next()).answer("one")
    await good
    bad = asyncio.ensure_future(door(worker, ask(ticket=2)))
    (await worker.engine.next()).fail(EngineFailed("No."))
    await bad
    await worker.emptied()
    report = worker.load.look(EngineLoad(), 0.0)
    assert (report.queued_requests, report.running_requests, report.tokens_in_flight) == (0, 0, 0)
    assert told(worker) == {1: TicketPhase.FINISHED, 2: TicketPhase.FINISHED}


@both_doors
async def test_requests_of_one_id_live_side_by_side(worker: WorkerHost, door: Door) -> None:
    answers = [asyncio.ensure_future(door(worker, ask("same"))) for _ in range(2)]
    for text in ("one", "two"):
        (await worker.engine.next()).answer(text)
    texts = {event.text for answer in answers for event in await answer if isinstance(event, Delta)}
    assert texts == {"one", "two"}
    assert len(worker.engine.requests) == 2


@both_doors
async def test_typed_input_reaches_the_engine_as_a_body(wire: Wire, worker: WorkerHost, door: Door) -> None:
    typed = generation_pb2.TypedInput(
        model="m", text="Once upon", sampling=generation_pb2.Sampling(max_token_count=3, temperature=0)
    )
    message = generation_pb2.GenerateRequest(request_id="r", typed=typed)
    stub = wire.generation_stub(worker)
    if door is through_generate:
        call = stub.Generate(message)
    else:
        call = stub.GenerateStream()
        await call.write(
            generation_pb2.GenerateStreamRequest(calls=[generation_pb2.GenerateCall(call_id=1, request=message)])
        )
    taken = await worker.engine.next()
    taken.finish()
    assert taken.request.dialect is Dialect.COMPLETION
    assert orjson.loads(taken.request.body) == {
        "model": "m",
        "prompt": "Once upon",
        "max_tokens": 3,
        "temperature": 0.0,
    }
    call.cancel()


async def test_a_request_without_input_is_refused_by_name_over_generate(wire: Wire, worker: WorkerHost) -> None:
    call = wire.generation_stub(worker).Generate(generation_pb2.GenerateRequest(request_id="r", ticket=9))
    with pytest.raises(grpc.RpcError) as caught:
        await soon(call.read())
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.param == "input"
    assert told(worker) == {9: TicketPhase.FINISHED}


async def test_a_request_without_input_is_refused_by_name_and_the_stream_goes_on(
    wire: Wire, worker: WorkerHost
) -> None:
    call = wire.generation_stub(worker).GenerateStream()
    bad = generation_pb2.GenerateCall(call_id=1, request=generation_pb2.GenerateRequest(request_id="r", ticket=9))
    good = generation_pb2.GenerateCall(
        call_id=2, request=generation_pb2.GenerateRequest(request_id="s", chat_completion_json=b"{}")
    )
    await call.write(generation_pb2.GenerateStreamRequest(calls=[bad, good]))
    refused = event_from_proto((await soon(call.read())).events[0])
    (await worker.engine.next()).finish()
    answered = (await soon(call.read())).events[0]
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, InvalidRequest)
    assert refused.error.param == "input"
    assert (answered.call_id, event_from_proto(answered)) == (2, Finished(10, 0, 1))
    assert told(worker) == {9: TicketPhase.FINISHED}
    call.cancel()


async def test_a_caller_of_generate_that_goes_away_stops_the_engine(wire: Wire, worker: WorkerHost) -> None:
    message = generation_pb2.GenerateRequest(request_id="r", ticket=1, chat_completion_json=b"{}")
    call = wire.generation_stub(worker).Generate(message)
    taken = await worker.engine.next()
    taken.start()
    await soon(call.read())
    call.cancel()
    await worker.engine.happened.until(lambda: worker.engine.aborted == ["r#1"])
    await worker.emptied()
    assert told(worker) == {1: TicketPhase.FINISHED}


async def test_a_reader_of_generate_that_stops_reading_stops_the_engine(worker: WorkerHost) -> None:
    events = generate(worker.address, ask())
    first = asyncio.ensure_future(anext(events))
    (await worker.engine.next()).start()
    assert await first == Started(10)
    await events.aclose()
    await worker.engine.happened.until(lambda: worker.engine.aborted == ["r#1"])


async def test_a_call_that_is_cancelled_stops_the_engine_and_no_other_call(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    one, two = begin(client, ask("one")), begin(client, ask("two"))
    await worker.engine.next()
    other = await worker.engine.next()
    one.cancel()
    await worker.engine.happened.until(lambda: worker.engine.aborted == ["one#1"])
    other.answer("on")
    assert (await all_events(two))[-1] == Finished(10, 0, 1)
    assert worker.engine.aborted == ["one#1"]


async def test_a_call_cancelled_before_it_left_is_counted_and_over(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    begin(client, ask(ticket=3)).cancel()
    await worker.changed.until(lambda: told(worker) == {3: TicketPhase.FINISHED})
    assert client.idle


async def test_a_client_that_is_gone_has_all_its_calls_aborted(wire: Wire, worker: WorkerHost) -> None:
    client = GenerationClient(worker.address)
    for name in ("one", "two", "three"):
        begin(client, ask(name))
        await worker.engine.next()
    await client.close()
    await worker.engine.happened.until(lambda: sorted(worker.engine.aborted) == ["one#1", "three#3", "two#2"])
    await worker.emptied()


async def test_a_client_that_says_no_more_still_gets_its_answers(wire: Wire, worker: WorkerHost) -> None:
    call = wire.generation_stub(worker).GenerateStream()
    request = generation_pb2.GenerateRequest(request_id="r", chat_completion_json=b"{}")
    calls = [generation_pb2.GenerateCall(call_id=number, request=request) for number in (1, 2)]
    await call.write(generation_pb2.GenerateStreamRequest(calls=calls))
    await call.done_writing()
    one, two = await worker.engine.next(), await worker.engine.next()
    one.finish()
    assert [entry.call_id for entry in (await soon(call.read())).events] == [1]
    two.finish()
    assert [entry.call_id for entry in (await soon(call.read())).events] == [2]
    assert await soon(call.read()) is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_without_calls_ends_when_the_client_has_said_all(wire: Wire, worker: WorkerHost) -> None:
    call = wire.generation_stub(worker).GenerateStream()
    await call.done_writing()
    assert await soon(call.read()) is grpc.aio.EOF


async def test_a_number_used_twice_ends_the_stream_with_all_its_calls(wire: Wire, worker: WorkerHost) -> None:
    # Neither call could be told from the other, and one of them would run on for nobody.
    call = wire.generation_stub(worker).GenerateStream()
    request = generation_pb2.GenerateRequest(request_id="r", chat_completion_json=b"{}")
    for _ in range(2):
        await call.write(
            generation_pb2.GenerateStreamRequest(calls=[generation_pb2.GenerateCall(call_id=1, request=request)])
        )
    with pytest.raises(grpc.RpcError) as caught:
        await soon(_to_the_end(call))
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.param == "call_id"
    await worker.emptied()


async def test_a_cancellation_of_an_unknown_call_is_nothing(wire: Wire, worker: WorkerHost) -> None:
    call = wire.generation_stub(worker).GenerateStream()
    await call.write(generation_pb2.GenerateStreamRequest(cancelled_call_ids=[1, 2**64 - 1]))
    request = generation_pb2.GenerateRequest(request_id="r", chat_completion_json=b"{}")
    await call.write(
        generation_pb2.GenerateStreamRequest(calls=[generation_pb2.GenerateCall(call_id=1, request=request)])
    )
    (await worker.engine.next()).finish()
    assert event_from_proto((await soon(call.read())).events[0]) == Finished(10, 0, 1)
    call.cancel()


async def test_a_request_past_its_deadline_counts_until_the_engine_has_let_go(wire: Wire, worker: WorkerHost) -> None:
    worker.engine.is_stubborn = True
    call = begin(wire.generation_client(worker), ask(timeout_s=0.01))
    taken = await worker.engine.next()
    assert isinstance(await failure_of(call), DeadlineExceeded)
    assert len(worker.sessions) == 1
    taken.say("late")
    taken.fail(Cancelled("Gone."))
    assert len(worker.sessions) == 0
    assert worker.load.look(EngineLoad(), 0.0).tokens_in_flight == 0


async def test_an_answer_in_time_takes_its_deadline_with_it(wire: Wire, worker: WorkerHost) -> None:
    call = begin(wire.generation_client(worker), ask(timeout_s=60))
    (await worker.engine.next()).answer("one")
    assert (await all_events(call))[-1] == Finished(10, 0, 1)
    assert worker.engine.aborted == []


async def test_usage_that_the_engine_counted_itself_is_what_the_load_says(wire: Wire, worker: WorkerHost) -> None:
    call = begin(wire.generation_client(worker), ask())
    taken = await worker.engine.next()
    taken.start(prompt_tokens=20, cached_tokens=5)
    taken.say("two tokens in one text")
    taken.finish(prompt_tokens=20, cached_tokens=5, output_tokens=2)
    await all_events(call)
    report = worker.load.look(EngineLoad(), 0.0)
    assert (report.prompt_token_total, report.cached_prompt_token_total, report.output_token_total) == (20, 5, 2)


async def test_abort_of_an_unknown_request_finds_nothing(wire: Wire, worker: WorkerHost) -> None:
    reply = await wire.generation_stub(worker).Abort(generation_pb2.AbortRequest(request_id="nobody"))
    assert not reply.found


async def test_abort_stops_every_request_of_the_id(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    calls = [begin(client, ask("same")), begin(client, ask("same")), begin(client, ask("other"))]
    for _ in calls:
        await worker.engine.next()
    await wire.generation_stub(worker).Abort(generation_pb2.AbortRequest(request_id="same"))
    assert isinstance(await failure_of(calls[0]), Cancelled)
    assert isinstance(await failure_of(calls[1]), Cancelled)
    assert worker.engine.aborted == ["same#1", "same#2"]


async def test_abort_without_an_id_stops_nobody(wire: Wire, worker: WorkerHost) -> None:
    begin(wire.generation_client(worker), ask(""))
    await worker.engine.next()
    with pytest.raises(grpc.RpcError) as caught:
        await wire.generation_stub(worker).Abort(generation_pb2.AbortRequest())
    assert isinstance(error_from_rpc(caught.value), InvalidRequest)
    assert worker.engine.aborted == []


async def test_stopping_everything_ends_every_call_in_the_reason(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    calls = [begin(client, ask(str(number))) for number in range(3)]
    for _ in calls:
        await worker.engine.next()
    worker.sessions.stop_all(WorkerUnreachable("The worker was stopped."))
    for call in calls:
        assert (await failure_of(call)).message == "The worker was stopped."
    async with asyncio.timeout(10):
        await worker.sessions.idle()


async def _to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
