"""A worker that stops while its engine has answered and its clients have not read: nobody is cut off too soon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from lbcore.api.v1 import generation_pb2
from lbcore.errors import WorkerUnreachable
from lbcore.generation import Delta, Failed, Finished
from lbcore.types import Capacity, EndpointState
from lbcore.wire.channel import UNREAD_BYTES
from lbcore.wire.convert import event_from_proto
from tests.fakes import settle
from tests.wire.conftest import Host, SchedulerHost, Wire, fixture, soon
from tests.wire.test_worker_app import RunningWorker, address_of, drained_by

CALLS = 100
#: In each answer, so that all together are somewhat more than a reader has room for without reading, and by far.
FEW_WORDS, MANY_WORDS = 20, 500

Unread = grpc.aio.StreamStreamCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]


@fixture()
async def running(scheduler: SchedulerHost) -> AsyncIterator[RunningWorker]:
    """A worker with room for all calls, and with an hour to drain."""
    worker = RunningWorker(scheduler, drain_timeout_s=3600)
    worker.engine.info = replace(worker.engine.info, capacity=Capacity(max_sequences=CALLS))
    await scheduler.state.happened.until(lambda: scheduler.endpoint("w0") is not None)
    yield worker
    await worker.stop()


class Reader:
    """A client that reads nothing until it is told to."""

    def __init__(self, wire: Wire, scheduler: SchedulerHost) -> None:
        host = Host()
        host.port = int(address_of(scheduler).rpartition(":")[2])
        self._stub = wire.generation_stub(host)

    async def ask_on_a_stream(self, room: int = 0) -> grpc.aio.StreamStreamCall[Any, Any]:
        call = self._stub.GenerateStream()
        calls = [
            generation_pb2.GenerateCall(call_id=number, request=self._request(), room=room)
            for number in range(1, CALLS + 1)
        ]
        await call.write(generation_pb2.GenerateStreamRequest(calls=calls))
        return call

    def ask(self) -> grpc.aio.UnaryStreamCall[Any, Any]:
        return self._stub.Generate(self._request())

    def _request(self) -> generation_pb2.GenerateRequest:
        return generation_pb2.GenerateRequest(request_id="r", completion_json=b"{}")


@fixture()
async def reader(wire: Wire, scheduler: SchedulerHost, running: RunningWorker) -> Reader:
    """Of the worker that runs."""
    return Reader(wire, scheduler)


def words(count: int) -> list[str]:
    return [f"word{number} " for number in range(count)]


async def answered(worker: RunningWorker, calls: int, said: list[str]) -> None:
    for _ in range(calls):
        (await worker.engine.next()).answer(*said)


async def read(call: Unread) -> dict[int, list[Any]]:
    """What each call of a stream was told, up to the stream's own end."""
    told: dict[int, list[Any]] = {}
    while (message := await soon(call.read())) is not grpc.aio.EOF:
        for entry in message.events:
            told.setdefault(entry.call_id, []).append(event_from_proto(entry))
    return told


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def still_drains(scheduler: SchedulerHost, worker: RunningWorker) -> bool:
    await settle(500)
    endpoint = scheduler.endpoint("w0")
    return (
        endpoint is not None
        and endpoint.state is EndpointState.DRAINING
        and not worker.engine.is_closed
        and not worker.task.done()
    )


@pytest.mark.parametrize("count", [FEW_WORDS, MANY_WORDS])
@pytest.mark.parametrize("room", [0, 1000], ids=["any room", "enough room"])
async def test_answers_that_are_complete_and_unread_arrive_whole_and_then_the_worker_is_gone(
    scheduler: SchedulerHost, running: RunningWorker, reader: Reader, count: int, room: int
) -> None:
    call = await reader.ask_on_a_stream(room)
    said = words(count)
    await answered(running, CALLS, said)
    await drained_by(scheduler)
    assert await still_drains(scheduler, running)
    told = await read(call)
    assert len(told) == CALLS
    for events in told.values():
        assert text_of(events) == "".join(said)
        assert events[-1] == Finished(10, 0, len(said))
    assert await call.code() is grpc.StatusCode.OK
    assert await running.exit_status() == 0
    assert scheduler.endpoint("w0") is None


async def test_an_answer_of_a_call_of_its_own_arrives_whole_too(
    scheduler: SchedulerHost, running: RunningWorker, reader: Reader
) -> None:
    call = reader.ask()
    said = words(4 * UNREAD_BYTES // len("word1234 "))
    await answered(running, 1, said)
    await drained_by(scheduler)
    assert await still_drains(scheduler, running)
    text, last = "", None
    while (message := await soon(call.read())) is not grpc.aio.EOF:
        text += message.delta.text
        last = message
    assert text == "".join(said)
    assert last is not None
    assert last.WhichOneof("event") == "finished"
    assert await call.code() is grpc.StatusCode.OK
    assert await running.exit_status() == 0


@pytest.mark.parametrize("count", [FEW_WORDS, MANY_WORDS])
async def test_a_client_that_never_reads_is_waited_for_no_longer_than_the_drain_may_take(
    scheduler: SchedulerHost, running: RunningWorker, reader: Reader, count: int
) -> None:
    call = await reader.ask_on_a_stream()
    await answered(running, CALLS, words(count))
    await drained_by(scheduler, deadline_ms=10)
    assert await running.exit_status() == 0
    assert scheduler.endpoint("w0") is None
    with pytest.raises(grpc.RpcError):
        await read(call)


async def test_a_client_that_goes_away_unread_is_waited_for_no_longer(
    scheduler: SchedulerHost, running: RunningWorker, reader: Reader
) -> None:
    streams: list[Unread] = [reader.ask()]
    await answered(running, 1, words(UNREAD_BYTES))
    streams.append(await reader.ask_on_a_stream())
    await answered(running, CALLS, words(MANY_WORDS))
    await drained_by(scheduler)
    assert await still_drains(scheduler, running)
    for stream in streams:
        stream.cancel()
    assert await running.exit_status() == 0


async def test_a_stream_without_calls_keeps_no_worker_that_drains(
    scheduler: SchedulerHost, running: RunningWorker, reader: Reader
) -> None:
    call = await reader.ask_on_a_stream()
    await answered(running, CALLS, words(FEW_WORDS))
    told = 0
    while told < CALLS:
        message = await soon(call.read())
        told += sum(isinstance(event_from_proto(entry), Finished) for entry in message.events)
    await drained_by(scheduler)
    assert await read(call) == {}
    assert await call.code() is grpc.StatusCode.OK
    assert await running.exit_status() == 0


async def test_calls_that_outlive_the_drain_hear_so_before_their_stream_ends_in_order(
    scheduler: SchedulerHost, running: RunningWorker, reader: Reader
) -> None:
    call = await reader.ask_on_a_stream()
    for _ in range(CALLS):
        await running.engine.next()
    await drained_by(scheduler, deadline_ms=10)
    told = await read(call)
    assert len(told) == CALLS
    for events in told.values():
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, WorkerUnreachable)
    assert await call.code() is grpc.StatusCode.OK
    assert await running.exit_status() == 0
