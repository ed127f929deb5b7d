"""Many calls on one stream: none mixed up, none forgotten when the stream breaks, and a new stream for the next."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog

from lbcore.api.v1 import generation_pb2
from lbcore.errors import BodyTooLarge, DeadlineExceeded, InvalidRequest, WorkerUnreachable
from lbcore.generation import Delta, Dialect, Event, Finished, GenerationRequest, Started
from lbcore.types import Epoch, Target, WorkerId
from lbcore.wire import channel, clients, outbox
from lbcore.wire.channel import new_server
from lbcore.wire.clients import GenerationClient, GenerationClients
from lbcore.wire.mux import MuxClient
from tests.fakes import Signal, settle
from tests.wire.conftest import Host, ReadCall, Wire, WorkerHost, all_events, begin, failure_of, soon


def ask(request_id: str = "r", body: bytes = b"{}") -> GenerationRequest:
    return GenerationRequest(request_id, Dialect.CHAT, body)


class StrangeHost(Host):
    """A peer that answers GenerateStream with bytes of its own choice, and then ends the stream, or hangs."""

    def __init__(self, *answers: bytes, hangs: bool = False) -> None:
        super().__init__()
        self._answers = answers
        self._hangs = hangs
        self._grpc = new_server()

    async def start(self) -> None:
        handler = grpc.stream_stream_rpc_method_handler(self._answer)
        service = "lbcore.api.v1.GenerationService"
        self._grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"GenerateStream": handler}),)
        )
        self.port = self._grpc.add_insecure_port("127.0.0.1:0")
        await self._grpc.start()

    async def stop(self) -> None:
        await self._grpc.stop(0)

    async def _answer(self, requests: AsyncIterator[bytes], context: Any) -> None:
        await context.read()
        for answer in self._answers:
            await context.write(answer)
        if self._hangs:
            await asyncio.get_running_loop().create_future()


class Door(Host):
    """A port that passes everything on to another while it is open; it may open late, and shut at any time."""

    def __init__(self, behind: Host, delay_s: float = 0.0) -> None:
        super().__init__()
        self.opened = asyncio.Event()
        self.opened.set()
        self._behind = behind
        self._delay_s = delay_s
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        await asyncio.sleep(self._delay_s)
        there, back = await asyncio.open_connection("127.0.0.1", self._behind.port)
        try:
            # The task belongs to asyncio's streams, which complain of one that was cancelled.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        finally:
            writer.close()
            back.close()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self.opened.wait()
            sink.write(data)


async def test_calls_that_run_side_by_side_are_never_mixed(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    calls = [begin(client, ask(str(number))) for number in range(100)]
    turns = [await worker.engine.next() for _ in calls] * 5
    random.Random(7).shuffle(turns)
    steps = dict.fromkeys(turns, 0)
    for taken in turns:
        name = taken.request.request_id.split("#")[0]
        match steps[taken]:
            case 0:
                taken.start(prompt_tokens=int(name))
            case 4:
                taken.finish(prompt_tokens=int(name))
            case step:
                taken.say(f"{name}.{step} ")
        steps[taken] += 1
        await asyncio.sleep(0)
    for number, call in enumerate(calls):
        assert await all_events(call) == [
            Started(number),
            Delta(text=f"{number}.1 "),
            Delta(text=f"{number}.2 "),
            Delta(text=f"{number}.3 "),
            Finished(number, 0, 1),
        ]
    assert client.idle


async def test_events_that_come_together_travel_in_few_messages(wire: Wire, worker: WorkerHost) -> None:
    call = wire.generation_stub(worker).GenerateStream()
    request = generation_pb2.GenerateRequest(request_id="r", chat_completion_json=b"{}")
    await call.write(
        generation_pb2.GenerateStreamRequest(calls=[generation_pb2.GenerateCall(call_id=1, request=request)])
    )
    taken = await worker.engine.next()
    taken.say(*(["token "] * 1000))
    taken.finish()
    messages, events = 0, 0
    while events < 1001:
        events += len((await soon(call.read())).events)
        messages += 1
    assert messages <= 3
    call.cancel()


async def test_an_event_that_comes_alone_does_not_wait_for_others(wire: Wire, worker: WorkerHost) -> None:
    call = begin(wire.generation_client(worker), ask())
    taken = await worker.engine.next()
    for text in ("one", "two"):
        taken.say(text)
        async with asyncio.timeout(5):
            assert await call.events() == [Delta(text=text)]


async def test_a_worker_that_was_never_there_fails_every_call(wire: Wire, worker: WorkerHost) -> None:
    await worker.stop()
    client = wire.generation_client(worker)
    for call in [begin(client, ask()) for _ in range(3)]:
        assert isinstance(await failure_of(call), WorkerUnreachable)
    assert client.idle


async def test_a_worker_that_dies_fails_every_open_call_and_keeps_what_it_said(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    calls = [begin(client, ask(str(number))) for number in range(3)]
    for _ in calls:
        (await worker.engine.next()).say("half an ans")
    for call in calls:
        assert await call.events() == [Delta(text="half an ans")]
    await worker.stop()
    for call in calls:
        assert isinstance(await failure_of(call), WorkerUnreachable)
    assert client.idle


async def test_a_worker_back_on_its_port_serves_the_next_call_at_once(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    cut = begin(client, ask("cut"))
    await worker.engine.next()
    await worker.stop()
    assert isinstance(await failure_of(cut), WorkerUnreachable)
    await worker.start()
    call = begin(client, ask("next"))
    (await worker.engine.next()).answer("back")
    assert (await all_events(call))[-1] == Finished(10, 0, 1)


async def test_a_new_client_does_not_wait_for_what_an_old_one_found_closed(wire: Wire, worker: WorkerHost) -> None:
    # Inside one process gRPC shares connections between channels, and with them the pause after a failed one.
    await worker.stop()
    old = wire.generation_client(worker)
    assert isinstance(await failure_of(begin(old, ask())), WorkerUnreachable)
    await worker.start()
    call = begin(wire.generation_client(worker), ask())
    (await worker.engine.next()).answer("back")
    assert (await all_events(call))[-1] == Finished(10, 0, 1)


async def test_a_connection_may_take_longer_than_a_blink(wire: Wire, worker: WorkerHost) -> None:
    # Two round trips around the world, or a machine that is busy loading a model.
    door = Door(worker, delay_s=0.3)
    await door.start()
    client = GenerationClient(door.address)
    call = begin(client, ask())
    (await worker.engine.next()).answer("there")
    assert (await all_events(call))[-1] == Finished(10, 0, 1)
    await client.close()
    await door.stop()


async def test_a_worker_that_stands_still_is_found_by_pings(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "KEEPALIVE_S", 0.25)
    monkeypatch.setattr(channel, "KEEPALIVE_TIMEOUT_S", 0.25)
    door = Door(worker)
    await door.start()
    client = GenerationClient(door.address)
    call = begin(client, ask())
    (await worker.engine.next()).say("one")
    assert await soon(call.events()) == [Delta(text="one")]
    door.opened.clear()
    assert isinstance(await failure_of(call), WorkerUnreachable)
    await client.close()
    await door.stop()


async def test_a_caller_may_try_again_from_inside_the_failure(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = wire.generation_client(worker)
    again: list[ReadCall] = []
    put = clients.Call.put

    def put_and_try_again(call: clients.Call, event: Event) -> bool:
        if not again:
            again.append(begin(client, ask("again")))
        return put(call, event)

    monkeypatch.setattr(clients.Call, "put", put_and_try_again)
    first = begin(client, ask("first"))
    await worker.engine.next()
    await worker.stop()
    assert isinstance(await failure_of(first), WorkerUnreachable)
    assert isinstance(await failure_of(again[0]), WorkerUnreachable)


async def test_closing_fails_the_calls_that_are_open(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    call = begin(client, ask())
    await worker.engine.next()
    await client.close()
    assert isinstance(await failure_of(call), WorkerUnreachable)


async def test_closing_fails_a_call_that_has_not_left_yet(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    call = begin(client, ask())
    await client.close()
    assert isinstance(await failure_of(call), WorkerUnreachable)


async def test_a_closed_client_fails_every_call(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    await client.close()
    assert isinstance(await failure_of(begin(client, ask())), WorkerUnreachable)


async def test_a_stream_that_ends_well_before_its_calls_fails_them(wire: Wire) -> None:
    host = StrangeHost()
    await host.start()
    assert isinstance(await failure_of(begin(wire.generation_client(host), ask())), WorkerUnreachable)
    await host.stop()


async def test_an_answer_that_is_no_message_fails_the_calls(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    host = StrangeHost(b"\xff\xff\xff\xff")
    await host.start()
    client = wire.generation_client(host)
    assert isinstance(await failure_of(begin(client, ask())), WorkerUnreachable)
    assert client.idle
    await host.stop()


async def test_events_of_calls_that_are_over_or_never_were_are_passed_over(wire: Wire) -> None:
    events = [
        generation_pb2.CallEvent(call_id=9, delta=generation_pb2.Delta(text="whose?")),
        generation_pb2.CallEvent(call_id=1),
        generation_pb2.CallEvent(call_id=1, finished=generation_pb2.Finished(output_token_count=2)),
        generation_pb2.CallEvent(call_id=1, delta=generation_pb2.Delta(text="after the end")),
    ]
    host = StrangeHost(generation_pb2.GenerateStreamResponse(events=events).SerializeToString())
    await host.start()
    call = begin(wire.generation_client(host), ask())
    assert await all_events(call) == [Finished(0, 0, 2)]
    await host.stop()


async def test_a_reader_that_gives_up_waiting_misses_nothing(wire: Wire, worker: WorkerHost) -> None:
    call = begin(wire.generation_client(worker), ask())
    waiting = asyncio.ensure_future(call.events())
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    (await worker.engine.next()).answer("one")
    assert len(await all_events(call)) == 3


async def test_prompts_too_many_for_one_message_travel_in_several(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_BATCH_BYTES", 1000)
    client = wire.generation_client(worker)
    calls = [begin(client, ask(str(number), body=b"x" * 400)) for number in range(20)]
    for _ in calls:
        (await worker.engine.next()).answer("one")
    for call in calls:
        assert (await all_events(call))[-1] == Finished(10, 0, 1)


async def test_a_body_that_no_message_can_carry_fails_alone(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_BODY_BYTES", 100)
    client = wire.generation_client(worker)
    good = begin(client, ask("good"))
    assert isinstance(await failure_of(begin(client, ask("bad", body=b"x" * 101))), BodyTooLarge)
    (await worker.engine.next()).answer("one")
    assert (await all_events(good))[-1] == Finished(10, 0, 1)
    assert channel.MAX_MESSAGE_BYTES > 100


@pytest.mark.parametrize(
    "bad",
    [
        ask("half a pair: \ud83d"),
        ask("bad")._replace(priority=2**40),
        ask("half a pair: \ud83d", body=b"x" * clients.LONG_BODY_BYTES),
    ],
    ids=["no text", "no number", "no text, and long"],
)
async def test_a_call_that_no_message_can_carry_is_refused_alone(
    wire: Wire, worker: WorkerHost, bad: GenerationRequest
) -> None:
    client = wire.generation_client(worker)
    before, refused, after = (begin(client, request) for request in (ask("before"), bad, ask("after")))
    error = await failure_of(refused)
    assert isinstance(error, InvalidRequest)
    assert "cannot be sent" in error.message
    for call in (before, after):
        (await worker.engine.next()).answer("one")
        assert (await all_events(call))[-1] == Finished(10, 0, 1)
    assert client.idle
    assert len(worker.engine.requests) == 2


async def test_a_call_that_no_message_can_carry_and_nobody_wants_any_more_says_nothing(
    wire: Wire, worker: WorkerHost
) -> None:
    client = wire.generation_client(worker)
    refused, other = begin(client, ask("half a pair: \ud83d")), begin(client, ask("other"))
    refused.cancel()
    waiting = asyncio.ensure_future(refused.events())
    (await worker.engine.next()).answer("one")
    await all_events(other)
    assert not waiting.done()
    waiting.cancel()


class Lossy:
    """A stream to a worker's GenerateStream that notes how it was lost."""

    def __init__(self, wire: Wire, worker: WorkerHost) -> None:
        self.lost = Signal()
        self.losses = 0
        self.build_error: Exception | None = None
        self.deliver_error: Exception | None = None
        self.mux: MuxClient[int, object] = MuxClient(
            worker.address,
            "/lbcore.api.v1.GenerationService/GenerateStream",
            self._build,
            generation_pb2.GenerateStreamResponse.FromString,
            self._deliver,
            self._lose,
        )

    def _build(self, call_ids: list[int]) -> tuple[bytes]:
        if self.build_error is not None:
            raise self.build_error
        # Without input, so that each is answered at once.
        calls = [generation_pb2.GenerateCall(call_id=call_id) for call_id in call_ids]
        return (generation_pb2.GenerateStreamRequest(calls=calls).SerializeToString(),)

    def _deliver(self, message: object) -> None:
        if self.deliver_error is not None:
            raise self.deliver_error

    def _lose(self) -> None:
        self.losses += 1
        self.lost.tell()


@pytest.mark.parametrize(
    ("half", "event"),
    [("build_error", "stream_write_failed"), ("deliver_error", "stream_read_failed")],
    ids=["written", "read"],
)
async def test_what_goes_wrong_on_a_stream_is_logged_and_loses_it_and_the_next_is_a_new_one(
    wire: Wire, worker: WorkerHost, half: str, event: str
) -> None:
    stream = Lossy(wire, worker)
    setattr(stream, half, RuntimeError("Broken."))
    for losses in (1, 2):
        with structlog.testing.capture_logs() as logs:
            stream.mux.send(losses)
            await stream.lost.until(lambda expected=losses: stream.losses == expected)
        assert [(entry["event"], entry["log_level"]) for entry in logs if entry["log_level"] == "error"] == [
            (event, "error")
        ]
        assert not stream.mux.is_open
    await stream.mux.close()
    assert stream.losses == 2


async def test_a_worker_that_forgets_its_deadline_is_given_up(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "GRACE_S", 0.01)
    host = StrangeHost(hangs=True)
    await host.start()
    client = wire.generation_client(host)
    late = begin(client, GenerationRequest("r", Dialect.CHAT, b"{}", timeout_s=0.01))
    assert isinstance(await failure_of(late), DeadlineExceeded)
    assert client.idle
    await host.stop()


async def test_a_call_that_ended_in_time_is_not_ended_again(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "GRACE_S", 0.0)
    client = wire.generation_client(worker)
    call = begin(client, GenerationRequest("r", Dialect.CHAT, b"{}", timeout_s=0.0))
    end = generation_pb2.CallEvent(call_id=call.call.call_id, finished=generation_pb2.Finished(output_token_count=1))
    client._deliver(generation_pb2.GenerateStreamResponse(events=[end]))
    assert await soon(call.events()) == [Finished(0, 0, 1)]
    waiting = asyncio.ensure_future(call.events())
    await settle()
    assert not waiting.done()
    waiting.cancel()


async def test_a_cancelled_call_says_nothing_more(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    call = begin(client, ask())
    taken = await worker.engine.next()
    taken.say("one")
    await call.events()
    call.cancel()
    await worker.engine.happened.until(lambda: worker.engine.aborted)
    other = begin(client, ask("other"))
    (await worker.engine.next()).answer("two")
    await all_events(other)
    waiting = asyncio.ensure_future(call.events())
    await settle()
    assert not waiting.done()
    waiting.cancel()


async def test_the_same_worker_gets_the_same_client(worker: WorkerHost) -> None:
    pool = GenerationClients()
    target = Target(WorkerId("w"), Epoch(1), worker.address)
    assert pool.to(target) is pool.to(target)
    await pool.close()


async def test_a_restarted_worker_gets_a_new_client_and_calls_under_way_go_on(worker: WorkerHost) -> None:
    pool = GenerationClients()
    old = pool.to(Target(WorkerId("w"), Epoch(1), worker.address))
    running = begin(old, ask("running"))
    taken = await worker.engine.next()
    new = pool.to(Target(WorkerId("w"), Epoch(2), worker.address))
    assert new is not old
    taken.answer("still here")
    assert (await all_events(running))[-1] == Finished(10, 0, 1)
    await pool.close()


async def test_a_stale_route_does_not_cut_the_calls_of_the_restarted_worker(worker: WorkerHost) -> None:
    pool = GenerationClients()
    new = pool.to(Target(WorkerId("w"), Epoch(2), worker.address))
    running = begin(new, ask("running"))
    taken = await worker.engine.next()
    pool.to(Target(WorkerId("w"), Epoch(1), worker.address))
    await settle()
    taken.answer("still here")
    assert (await all_events(running))[-1] == Finished(10, 0, 1)
    await pool.close()


async def test_clients_of_workers_that_are_gone_are_closed_once_they_are_idle(worker: WorkerHost) -> None:
    pool = GenerationClients()
    target = Target(WorkerId("w"), Epoch(1), worker.address)
    client = pool.to(target)
    call = begin(client, ask())
    taken = await worker.engine.next()
    pool.keep_only({})
    assert pool.to(target) is client
    taken.answer("one")
    await all_events(call)
    pool.keep_only({worker.address: Epoch(1)})
    assert pool.to(target) is client
    pool.keep_only({})
    assert pool.to(target) is not client
    await pool.close()


async def test_a_client_of_an_earlier_epoch_is_closed_once_it_is_idle(worker: WorkerHost) -> None:
    # Without a table to follow nobody calls keep_only, and restarts must not pile up connections.
    pool = GenerationClients()
    for epoch in range(1, 6):
        call = begin(pool.to(Target(WorkerId("w"), Epoch(epoch), worker.address)), ask())
        (await worker.engine.next()).answer("one")
        await all_events(call)
    assert len(pool) == 1
    await pool.close()


async def test_a_server_that_serves_has_no_second_on_its_port(wire: Wire, worker: WorkerHost) -> None:
    with socket.socket() as second, pytest.raises(OSError, match="in use"):
        second.bind(("127.0.0.1", worker.port))
