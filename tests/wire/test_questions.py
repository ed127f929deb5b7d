"""Questions to the scheduler that nobody waits for any more: silent from then on, and nothing stays booked for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from lbcore.api.v1 import routing_pb2
from lbcore.errors import DeadlineExceeded, InvalidRequest, LoadBalancerError, NoReadyWorker
from lbcore.generation import Dialect, Event, Failed, GenerationRequest
from lbcore.types import Route, RouteFacts
from lbcore.wire import outbox, routing_client
from lbcore.wire.clients import Call
from lbcore.wire.outbox import MAX_BATCH_ITEMS
from lbcore.wire.routing_client import Question, RoutingClient
from tests.fakes import Signal, settle
from tests.fleet import MODEL, spec
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost

FACTS = RouteFacts("r", MODEL, prompt_bytes=4000)


class Asker:
    """Asks, and notes what it hears."""

    def __init__(self, client: RoutingClient, timeout_s: float | None = None, facts: RouteFacts = FACTS) -> None:
        self.heard: list[Route | LoadBalancerError] = []
        self.happened = Signal()
        self.on_answer: Callable[[], None] = lambda: None
        self.question: Question = client.ask(facts, self._hear, (), timeout_s)

    def _hear(self, answer: Route | LoadBalancerError) -> None:
        self.heard.append(answer)
        self.on_answer()
        self.happened.tell()

    async def answer(self) -> Route | LoadBalancerError:
        await self.happened.until(lambda: self.heard)
        [answer] = self.heard
        return answer


class Gate:
    """Keeps answers of the scheduler back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[Callable[[], None]] = []
        self.happened = Signal()
        deliver = RoutingClient._deliver

        def keep(client: RoutingClient, message: routing_pb2.RouteStreamResponse) -> None:
            self.kept.append(lambda: deliver(client, message))
            self.happened.tell()

        monkeypatch.setattr(RoutingClient, "_deliver", keep)

    async def full(self) -> None:
        await self.happened.until(lambda: self.kept)

    def open(self) -> None:
        kept, self.kept = self.kept, []
        for deliver in kept:
            deliver()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def emptied(scheduler: SchedulerHost) -> None:
    """Returns once nothing is booked."""
    await scheduler.state.happened.until(lambda: scheduler.credit() == (0, 0))


async def test_a_question_cancelled_before_it_has_left_is_not_answered_and_its_ticket_given_back(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    scheduler.join(spec())
    asker = Asker(wire.routing_client(scheduler))
    asker.question.cancel()
    await scheduler.state.happened.until(lambda: scheduler.state.pool.snapshot(MODEL, 0).pick_count == 1)
    await emptied(scheduler)
    await settle()
    assert asker.heard == []


async def test_a_question_cancelled_while_its_answer_is_on_its_way_gives_its_ticket_back(
    wire: Wire, scheduler: SchedulerHost, gate: Gate
) -> None:
    scheduler.join(spec())
    asker = Asker(wire.routing_client(scheduler))
    await gate.full()
    assert scheduler.credit()[0] == 1
    asker.question.cancel()
    gate.open()
    await emptied(scheduler)
    assert asker.heard == []


async def test_a_question_may_be_cancelled_twice_and_after_its_answer(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    asker = Asker(client, timeout_s=60.0)
    route = await asker.answer()
    asker.question.cancel()
    asker.question.cancel()
    assert isinstance(route, Route)
    # Who heard of the ticket gives it back.
    assert scheduler.credit()[0] == 1
    client.release(route.ticket)
    await emptied(scheduler)


async def test_a_question_cancelled_in_time_does_not_expire(wire: Wire, scheduler: SchedulerHost, gate: Gate) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    asker, other = Asker(client, timeout_s=0.02), Asker(client, timeout_s=0.04)
    asker.question.cancel()
    assert isinstance(await other.answer(), DeadlineExceeded)
    assert asker.heard == []
    await gate.full()
    gate.open()
    await emptied(scheduler)


async def test_a_question_that_expires_is_told_so_once_and_its_ticket_given_back(
    wire: Wire, scheduler: SchedulerHost, gate: Gate
) -> None:
    scheduler.join(spec())
    asker = Asker(wire.routing_client(scheduler), timeout_s=0.01)
    assert isinstance(await asker.answer(), DeadlineExceeded)
    await gate.full()
    asker.question.cancel()
    gate.open()
    await emptied(scheduler)
    assert len(asker.heard) == 1


async def test_an_answer_in_time_calls_the_deadline_off(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    asker = Asker(client, timeout_s=0.5)
    assert isinstance(await asker.answer(), Route)
    assert not client._deadlines._timers


async def test_an_answer_that_cancels_the_next_in_its_message_has_that_one_s_ticket_given_back(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    first, second = Asker(client), Asker(client)
    first.on_answer = second.question.cancel
    route = await first.answer()
    assert isinstance(route, Route)
    await scheduler.state.happened.until(lambda: scheduler.credit()[0] == 1)
    assert second.heard == []
    client.release(route.ticket)
    await emptied(scheduler)


async def test_a_deadline_that_cancels_another_silences_it(wire: Wire, scheduler: SchedulerHost, gate: Gate) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    first, second = Asker(client, timeout_s=0.01), Asker(client, timeout_s=0.01)
    first.on_answer = second.question.cancel
    assert isinstance(await first.answer(), DeadlineExceeded)
    await gate.full()
    gate.open()
    await emptied(scheduler)
    assert second.heard == []


async def test_a_question_that_is_cancelled_as_others_are_lost_hears_nothing(
    wire: Wire, scheduler: SchedulerHost, gate: Gate
) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    first, second, third = Asker(client), Asker(client), Asker(client)
    first.on_answer = second.question.cancel
    await gate.full()
    await scheduler.stop()
    for asker in (first, third):
        assert isinstance(await asker.answer(), NoReadyWorker)
    assert second.heard == []


async def test_who_asks_again_when_the_scheduler_is_lost_is_answered_by_the_next(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    client = wire.routing_client(scheduler)
    await scheduler.stop()
    again: list[Asker] = []
    first = Asker(client)
    first.on_answer = lambda: again.append(Asker(client))
    assert isinstance(await first.answer(), NoReadyWorker)
    assert isinstance(await again[0].answer(), NoReadyWorker)
    assert len(first.heard) == 1


async def test_a_closed_client_refuses_a_question_unless_it_is_cancelled_before(scheduler: SchedulerHost) -> None:
    client = RoutingClient(scheduler.address)
    await client.close()
    asker, cancelled = Asker(client, timeout_s=60.0), Asker(client)
    assert asker.heard == []
    cancelled.question.cancel()
    assert isinstance(await asker.answer(), NoReadyWorker)
    await settle()
    assert cancelled.heard == []


@pytest.mark.parametrize(
    "bad",
    [FACTS._replace(session_id="half a pair: \ud83d"), FACTS._replace(prefix_hashes=(-1,))],
    ids=["no text", "no number"],
)
@pytest.mark.parametrize("timeout_s", [None, 60.0])
async def test_a_question_that_no_message_can_carry_is_refused_alone(
    wire: Wire, scheduler: SchedulerHost, bad: RouteFacts, timeout_s: float | None
) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    before, refused, after = (Asker(client, timeout_s, facts) for facts in (FACTS, bad, FACTS))
    assert refused.heard == []
    error = await refused.answer()
    assert isinstance(error, InvalidRequest)
    assert "cannot be sent" in error.message
    for asker in (before, after):
        assert isinstance(await asker.answer(), Route)
    assert scheduler.credit()[0] == 2


async def test_a_question_that_no_message_can_carry_and_nobody_asks_any_more_hears_nothing(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)
    refused, other = Asker(client, facts=FACTS._replace(session_id="half a pair: \ud83d")), Asker(client)
    refused.question.cancel()
    await other.answer()
    await settle()
    assert refused.heard == []


class Scribe:
    """Notes how many questions each message held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        build = routing_client._route_batch

        def note(items: list[Any]) -> routing_pb2.RouteStreamRequest:
            self.counts.append(len(items))
            return build(items)

        monkeypatch.setattr(routing_client, "_route_batch", note)


async def test_questions_too_many_for_one_message_travel_in_several(
    wire: Wire, scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.join(spec())
    scribe = Scribe(monkeypatch)
    client = wire.routing_client(scheduler)
    askers = [Asker(client) for _ in range(MAX_BATCH_ITEMS + 1)]
    assert all([isinstance(await asker.answer(), Route) for asker in askers])
    assert scribe.counts == [MAX_BATCH_ITEMS, 1]


@pytest.mark.parametrize(
    "long",
    [
        RouteFacts("r" * 600, MODEL),
        RouteFacts("r", "m" * 600),
        RouteFacts("r", MODEL, session_id="s" * 600),
        RouteFacts("r", MODEL, tenant="t" * 600),
        RouteFacts("r", MODEL, prefix_hashes=(1,) * 75),
    ],
    ids=["request", "model", "session", "tenant", "hashes"],
)
async def test_questions_too_long_for_one_message_travel_in_several(
    wire: Wire, scheduler: SchedulerHost, long: RouteFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.join(spec(models=(MODEL, long.model)))
    monkeypatch.setattr(outbox, "MAX_BATCH_BYTES", 1000)
    scribe = Scribe(monkeypatch)
    client = wire.routing_client(scheduler)
    askers = [Asker(client, facts=facts) for facts in (long, long, FACTS, FACTS)]
    assert all([isinstance(await asker.answer(), Route) for asker in askers])
    assert scribe.counts == [1, 3]


async def test_a_call_that_is_cancelled_as_others_are_lost_hears_nothing(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    heard: dict[int, list[Event]] = {0: [], 1: [], 2: []}
    calls: list[Call] = []
    over = asyncio.Event()

    def take(number: int) -> Callable[[list[Event], object], None]:
        def hear(events: list[Event], flow: object) -> None:
            heard[number] += events
            if number == 0:
                calls[1].cancel()
            if number == 2:
                over.set()

        return hear

    calls += [client.begin(GenerationRequest(f"r{number}", Dialect.CHAT, b"{}"), take(number)) for number in range(3)]
    for _ in calls:
        await worker.engine.next()
    await worker.stop()
    async with asyncio.timeout(10):
        await over.wait()
    assert [type(event) for event in (*heard[0], *heard[2])] == [Failed, Failed]
    assert heard[1] == []


async def test_who_raises_on_hearing_of_its_events_takes_no_other_with_it(wire: Wire, worker: WorkerHost) -> None:
    client = wire.generation_client(worker)
    heard: list[Event] = []
    over = asyncio.Event()

    def broken(events: list[Event], flow: object) -> None:
        raise RuntimeError("no")

    def take(events: list[Event], flow: object) -> None:
        heard.extend(events)
        over.set()

    client.begin(GenerationRequest("r0", Dialect.CHAT, b"{}"), broken)
    client.begin(GenerationRequest("r1", Dialect.CHAT, b"{}"), take)
    for _ in range(2):
        await worker.engine.next()
    with structlog.testing.capture_logs() as logs:
        await worker.stop()
        async with asyncio.timeout(10):
            await over.wait()
    assert [type(event) for event in heard] == [Failed]
    assert "events_not_taken" in [entry["event"] for entry in logs]


async def test_who_raises_on_hearing_an_answer_takes_no_other_with_it(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    client = wire.routing_client(scheduler)

    def broken(answer: object) -> None:
        raise RuntimeError("no")

    with structlog.testing.capture_logs() as logs:
        client.ask(FACTS, broken)
        assert isinstance(await Asker(client).answer(), Route)
    assert "answer_not_taken" in [entry["event"] for entry in logs]
