"""Back-pressure from who takes events to the engine: at most so many on their way, and nobody waits for another."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from lbcore.api.v1 import generation_pb2
from lbcore.errors import Cancelled, DeadlineExceeded, WorkerUnreachable
from lbcore.flow import ROOM, Flow
from lbcore.generation import Delta, Dialect, Embedding, Event, Failed, Finished, GenerationRequest, Started
from lbcore.wire import clients
from lbcore.wire.clients import generate
from lbcore.wire.convert import event_from_proto, generation_to_proto, response_from_event
from tests.fakes import Signal, settle
from tests.wire.conftest import Wire, WorkerHost, all_events, begin, soon
from worker import lanes, service

ENDS = (Finished, Failed)


def ask(request_id: str = "r", timeout_s: float | None = None) -> GenerationRequest:
    return GenerationRequest(request_id, Dialect.CHAT, b"{}", timeout_s=timeout_s)


class Taker:
    """Takes what it is handed, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.happened = Signal()

    def take(self, events: list[Event], flow: Flow) -> None:
        self.batches.append([*events])
        self.happened.tell()

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def ends(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, ENDS)]

    async def ended(self) -> None:
        await self.happened.until(lambda: self.ends)


class Slow(Taker):
    """Takes one batch at a time: pauses after each, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.flow: Flow | None = None

    def take(self, events: list[Event], flow: Flow) -> None:
        flow.pause()
        self.flow = flow
        super().take(events, flow)

    async def go_on_to_the_end(self) -> None:
        while not self.ends:
            await self.happened.until(lambda: self.flow is not None)
            assert self.flow is not None
            flow, self.flow = self.flow, None
            flow.resume()


def words(count: int) -> list[str]:
    return [f"{number} " for number in range(count)]


async def test_a_paused_call_gets_what_there_is_room_for_and_another_goes_on(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    slow = Taker()
    paused = client.begin(ask("slow"), slow.take)
    paused.pause()
    said = words(3 * ROOM)
    engine = await worker.engine.next()
    engine.say(*said)
    engine.finish()
    quick = begin(client, ask("quick"))
    (await worker.engine.next()).answer("one")
    assert await all_events(quick) == [Started(10, 0), Delta(text="one"), Finished(10, 0, 1)]
    assert slow.batches == []
    assert not client.idle
    # What the other call said left the worker later: all that was let go for this one is here.
    paused.resume()
    assert len(slow.batches[0]) == ROOM
    assert slow.text == "".join(said[:ROOM])
    await slow.ended()
    assert slow.text == "".join(said)
    assert slow.ends == [Finished(10, 0, 1)]
    assert client.idle


async def test_who_takes_one_batch_at_a_time_misses_nothing_and_changes_no_order(
    wire: Wire, worker: WorkerHost
) -> None:
    slow = Slow()
    wire.generation_client(worker).begin(ask(), slow.take)
    engine = await worker.engine.next()
    engine.start()
    said = words(5 * ROOM)
    for start in range(0, len(said), 100):
        engine.say(*said[start : start + 100])
        await settle(1)
    engine.finish()
    await soon(slow.go_on_to_the_end())
    assert slow.events[0] == Started(10, 0)
    assert slow.text == "".join(said)
    assert slow.ends == [Finished(10, 0, 1)]
    assert slow.events[-1] == slow.ends[0]


async def test_who_reads_as_it_comes_is_never_held_up(wire: Wire, worker: WorkerHost) -> None:
    taker = Taker()
    wire.generation_client(worker).begin(ask(), taker.take)
    engine = await worker.engine.next()
    # Ten times the room, never more than a part of it at once: were room not given back, this would stand still.
    said = words(10 * ROOM)
    for start in range(0, len(said), ROOM // 4):
        engine.say(*said[start : start + ROOM // 4])
        await taker.happened.until(lambda upto=start: taker.text.endswith(said[upto + ROOM // 4 - 1]))
    engine.finish()
    await taker.ended()
    assert taker.text == "".join(said)


async def test_many_calls_of_which_half_are_paused_all_get_their_own(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    takers = [Taker() for _ in range(10)]
    calls = [client.begin(ask(str(number)), taker.take) for number, taker in enumerate(takers)]
    for call in calls[::2]:
        call.pause()
    engines = [await worker.engine.next() for _ in calls]
    for engine in engines:
        engine.say(*(f"{engine.request.request_id}:{number} " for number in range(2 * ROOM)))
        engine.finish()
    for taker in takers[1::2]:
        await taker.ended()
    assert [taker.batches for taker in takers[::2]] == [[]] * 5
    for call in calls[::2]:
        call.resume()
    for taker, engine in zip(takers, engines, strict=True):
        await taker.ended()
        assert taker.text == "".join(f"{engine.request.request_id}:{number} " for number in range(2 * ROOM))


async def test_a_paused_call_can_be_cancelled_and_says_nothing_more(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    taker = Taker()
    call = client.begin(ask(), taker.take)
    call.pause()
    engine = await worker.engine.next()
    engine.say(*words(2 * ROOM))
    call.cancel()
    await worker.engine.happened.until(lambda: worker.engine.aborted)
    call.resume()
    await worker.emptied()
    assert taker.batches == []
    assert client.idle


async def test_who_takes_may_cancel_from_inside(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    taken: list[Event] = []

    def take(events: list[Event], flow: Flow) -> None:
        taken.extend(events)
        call.cancel()

    call = client.begin(ask(), take)
    engine = await worker.engine.next()
    engine.say("one")
    await worker.engine.happened.until(lambda: worker.engine.aborted)
    assert taken == [Delta(text="one")]


async def test_an_error_overtakes_what_the_worker_keeps_for_a_paused_call(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    taker = Taker()
    call = client.begin(ask(), taker.take)
    call.pause()
    engine = await worker.engine.next()
    engine.say(*words(2 * ROOM))
    worker.sessions.stop_all(WorkerUnreachable("The worker was stopped."))
    other = begin(client, ask("other"))
    (await worker.engine.next()).answer("one")
    await all_events(other)
    call.resume()
    [batch] = taker.batches
    assert len(batch) == ROOM + 1
    assert isinstance(batch[-1], Failed)


async def test_a_paused_call_s_deadline_still_ends_it(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "GRACE_S", 0.01)
    client = wire.generation_client(worker)
    taker = Taker()
    call = client.begin(ask(timeout_s=0.01), taker.take)
    call.pause()
    (await worker.engine.next()).say(*words(2 * ROOM))
    await taker.ended()
    last = taker.events[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, DeadlineExceeded)
    assert client.idle
    await worker.engine.happened.until(lambda: worker.engine.aborted)
    await worker.emptied()


@pytest.mark.parametrize("is_good", [True, False], ids=["finished", "failed"])
async def test_a_paused_call_that_ended_and_whose_time_is_over_has_one_end(
    wire: Wire, worker: WorkerHost, is_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "GRACE_S", 0.0)
    client = wire.generation_client(worker)
    taker = Taker()
    call = client.begin(ask(timeout_s=60.0), taker.take)
    call.pause()
    engine = await worker.engine.next()
    engine.say("one")
    if is_good:
        engine.finish()
    else:
        engine.fail(DeadlineExceeded("Late."))
    other = begin(client, ask("other"))
    (await worker.engine.next()).answer("one")
    await all_events(other)
    call.expire()
    call.resume()
    assert len(taker.ends) == 1


async def test_a_caller_that_never_reads_on_is_stopped_at_the_engine_and_no_other(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_WAITING_BYTES", 10_000)
    client = wire.generation_client(worker)
    taker = Taker()
    call = client.begin(ask("greedy"), taker.take)
    call.pause()
    other = begin(client, ask("other"))
    engine, engine_of_other = await worker.engine.next(), await worker.engine.next()
    engine.say(*words(ROOM))
    engine.say(*["x" * 1000] * 20)
    assert worker.engine.aborted == ["greedy#1"]
    engine_of_other.answer("one")
    assert (await all_events(other))[-1] == Finished(10, 0, 1)
    call.resume()
    await taker.ended()
    last = taker.events[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, Cancelled)
    assert worker.engine.aborted == ["greedy#1"]
    await worker.emptied()


async def test_large_events_of_one_call_let_the_small_ones_of_another_pass(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    large, small = Taker(), Taker()
    client.begin(ask("large"), large.take)
    client.begin(ask("small"), small.take)
    engine_of_large, engine_of_small = await worker.engine.next(), await worker.engine.next()
    order: list[str] = []
    large.happened, small.happened = _Noting(order, "large"), _Noting(order, "small")
    engine_of_large.say(*["x" * lanes.TURN_BYTES] * 8)
    engine_of_large.finish()
    engine_of_small.answer("one")
    await large.ended()
    await small.ended()
    assert order[0] == "small"
    assert large.text == "x" * lanes.TURN_BYTES * 8


class _Noting(Signal):
    """Notes whose news came first."""

    def __init__(self, order: list[str], name: str) -> None:
        super().__init__()
        self._order = order
        self._name = name

    def tell(self, *facts: object) -> None:
        self._order.append(self._name)
        super().tell()


async def test_a_reader_of_generate_that_is_slow_misses_nothing(worker: WorkerHost) -> None:
    events: list[Event] = []
    said = [*words(2 * ROOM), "x" * lanes.TURN_BYTES, *words(10)]

    async def read() -> None:
        async for event in generate(worker.address, ask()):
            await settle(2)
            events.append(event)

    reading = asyncio.ensure_future(read())
    (await worker.engine.next()).answer(*said)
    await soon(reading)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "".join(said)
    assert events[0] == Started(10, 0)
    assert events[-1] == Finished(10, 0, len(said))


async def test_a_caller_of_generate_that_never_reads_large_events_is_stopped_at_the_engine(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_WAITING_BYTES", 100_000)
    call = wire.generation_stub(worker).Generate(generation_to_proto(ask()))
    engine = await worker.engine.next()
    for _ in range(20):
        engine.say("x" * 10_000)
    assert worker.engine.aborted == ["r#1"]
    with pytest.raises(grpc.RpcError) as caught:
        _ = [message async for message in call]
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    await worker.emptied()


async def test_a_caller_of_generate_that_does_not_read_has_the_rest_kept_in_its_lane(
    wire: Wire, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Event] = []
    written: list[Event] = []

    class Watched(lanes.Lanes):
        async def take(self) -> list[tuple[int, Event, bool]]:
            events = await super().take()
            taken.extend(event for _, event, _ in events)
            return events

    def write(event: Started | Delta | Embedding | Finished) -> generation_pb2.GenerateResponse:
        written.append(event)
        assert len(taken) - len(written) < ROOM
        return response_from_event(event)

    monkeypatch.setattr(service, "Lanes", Watched)
    monkeypatch.setattr(service, "response_from_event", write)
    call = wire.generation_stub(worker).Generate(generation_to_proto(ask()))
    engine = await worker.engine.next()
    texts = [f"{number}{'.' * 1000}" for number in range(20_000)]
    engine.start()
    for start in range(0, len(texts), 500):
        engine.say(*texts[start : start + 500])
        await settle()
    # What gRPC and the kernel keep is not bounded by us, but it is bounded.
    assert len(taken) < 10_000
    assert len(taken) - len(written) < ROOM
    assert worker.engine.aborted == []
    engine.finish()
    events = [event_from_proto(message) async for message in call]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "".join(texts)
    assert events[-1] == Finished(10, 0, 1)
    assert len(events) == len(taken) == len(written)
    await worker.emptied()
