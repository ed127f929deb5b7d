"""A request between its message and its events: answered in as few messages as can be, and gone without a trace."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import orjson
import pytest
import pytest_asyncio

from lbcore.deadlines import Deadlines, Expiring
from lbcore.errors import Cancelled, CannotContinue, EngineFailed, Saturated
from lbcore.generation import (
    Continuation,
    Delta,
    Dialect,
    Embedding,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Started,
)
from lbcore.types import Ticket
from tests.fakes import ManualClock, ScriptedEngine, settle
from tests.unit.worker.lane_talk import is_silent, message, of
from worker.engine import Emit, Engine, EngineLoad
from worker.engines.sim.engine import SimEngine, SimOptions
from worker.lanes import Lane, Lanes
from worker.load import LoadTracker
from worker.service import Sessions

E = TypeVar("E", bound=Engine)


class Desk(Generic[E]):
    """Sessions over an engine, and the lanes of one stream."""

    def __init__(self, engine: E, capacity: int = 10) -> None:
        self.engine = engine
        self.clock = ManualClock()
        self.sessions = Sessions(engine, LoadTracker(), capacity, lambda: None, self.clock)
        self.lanes = Lanes()

    def ask(self, call_id: int, max_tokens: int = 1, room: int = 0) -> Lane:
        body = orjson.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": max_tokens, "n": 2})
        request = GenerationRequest(f"r{call_id}", Dialect.CHAT, body, Ticket(call_id), timeout_s=60.0)
        lane = self.lanes.open(call_id, room)
        self.sessions.begin(request, lane)
        return lane


class Hasty(ScriptedEngine):
    """Ends requests before it has taken them, against the contract: in a failure or by raising."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self._raises = raises

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        if self._raises:
            raise RuntimeError("Broken.")
        super().submit(request, emit)
        self.requests[request.request_id].fail(EngineFailed("No."))


class Kept(Deadlines):
    """Knows which deadlines have been neither called off nor come."""

    def __init__(self) -> None:
        super().__init__()
        self.open: set[Expiring] = set()

    def add(self, expiring: Expiring, seconds: float) -> None:
        self.open.add(expiring)
        super().add(expiring, seconds)

    def drop(self, expiring: Expiring) -> None:
        self.open.discard(expiring)
        super().drop(expiring)


@pytest_asyncio.fixture()
async def desk() -> AsyncIterator[Desk[SimEngine]]:
    """Over an unpaced engine."""
    desk = Desk(SimEngine(SimOptions(step_ms=0), ManualClock()))
    await desk.engine.start()
    yield desk
    await desk.engine.close()


async def test_a_short_answer_leaves_in_one_message(desk: Desk[SimEngine]) -> None:
    writer = asyncio.ensure_future(desk.lanes.take())
    await settle()
    desk.ask(1, max_tokens=1)
    assert [type(event) for _, event, _ in await writer] == [Started, Delta, Delta, Finished]


async def test_what_has_ended_is_gone_without_a_search_for_cycles(desk: Desk[SimEngine]) -> None:
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 6):
            desk.ask(number, max_tokens=2)
            while type((await desk.lanes.take())[-1][1]) is not Finished:
                pass
            await settle()
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_what_was_stopped_is_gone_without_a_search_for_cycles(desk: Desk[SimEngine]) -> None:
    gc.collect()
    gc.disable()
    try:
        desk.ask(1, max_tokens=100)
        [lane] = desk.lanes
        lane.stop(Cancelled("The caller went away."))
        del lane
        assert type((await desk.lanes.take())[-1][1]) is Failed
        await settle()
        assert not len(desk.sessions)
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_an_answer_that_is_yet_to_be_written_keeps_a_worker_that_drains() -> None:
    desk = Desk(ScriptedEngine())
    desk.ask(1, room=1)
    (await desk.engine.next()).answer("one", "two")
    idle = asyncio.ensure_future(desk.sessions.idle())
    assert await of(desk.lanes, 1) == [Started(10)]
    assert len(desk.sessions) == 0
    assert not idle.done()
    desk.lanes.make_room(1, 10)
    assert (await of(desk.lanes, 1))[-1] == Finished(10, 0, 2)
    await settle()
    assert not idle.done()
    # Who asks for more has written what there was.
    assert await is_silent(desk.lanes)
    assert idle.done()


async def test_an_answer_whose_caller_went_away_keeps_no_worker_that_drains() -> None:
    desk = Desk(ScriptedEngine())
    desk.ask(1, room=1)
    (await desk.engine.next()).answer("one", "two")
    desk.lanes.drop(1)
    await desk.sessions.idle()


async def test_answers_on_a_stream_that_broke_keep_no_worker_that_drains() -> None:
    desk = Desk(ScriptedEngine())
    for number, room in ((1, 0), (2, 0), (3, 1)):
        desk.ask(number, room=room)
        (await desk.engine.next()).answer("one", "two")
        # The first is being written, the second is ready, and the third waits for its reader.
        if number == 1:
            await message(desk.lanes)
    desk.ask(4)
    idle = asyncio.ensure_future(desk.sessions.idle())
    assert [lane.call_id for lane in desk.lanes.drop_all()] == [3, 4]
    await settle()
    assert not idle.done()
    (await desk.engine.next()).finish()
    await idle


async def test_a_request_that_its_engine_has_not_let_go_keeps_a_worker_that_drains() -> None:
    desk = Desk(ScriptedEngine())
    desk.engine.is_stubborn = True
    lane = desk.ask(1)
    taken = await desk.engine.next()
    lane.stop(Cancelled("The caller went away."))
    idle = asyncio.ensure_future(desk.sessions.idle())
    await message(desk.lanes)
    assert await is_silent(desk.lanes)
    assert lane.is_gone
    assert not idle.done()
    taken.fail(Cancelled("Gone."))
    await idle


async def test_answers_that_nobody_reads_count_against_the_capacity() -> None:
    desk = Desk(ScriptedEngine(), capacity=2)
    for number in (1, 2):
        desk.ask(number, room=1)
        (await desk.engine.next()).answer("one", "two")
    assert len(desk.sessions) == 0
    desk.ask(3)
    events = await message(desk.lanes)
    assert [number for number, _ in events] == [1, 2, 3]
    refusal = events[-1][1]
    assert isinstance(refusal, Failed)
    assert isinstance(refusal.error, Saturated)
    desk.lanes.make_room(1, 10)
    assert (await of(desk.lanes, 1))[-1] == Finished(10, 0, 2)
    assert await is_silent(desk.lanes)
    desk.ask(4)
    await desk.engine.next()
    assert await is_silent(desk.lanes)


@pytest.mark.parametrize("first", [Delta(text="a"), Embedding(0, b"")], ids=["token", "vector"])
async def test_the_end_of_a_request_tells_when_its_first_token_came_and_how_long_it_took(first: Event) -> None:
    desk = Desk(ScriptedEngine())
    desk.ask(1)
    taken = await desk.engine.next()
    desk.clock.advance(0.125)
    taken.start()
    desk.clock.advance(0.125)
    taken.emit(first)
    desk.clock.advance(1.0)
    taken.emit(first)
    taken.finish()
    [update] = desk.sessions.load.look(EngineLoad(), 0.0).ticket_updates
    assert (update.ttft_ms, update.duration_ms) == (250.0, 1250.0)


async def test_a_deadline_is_kept_until_its_request_has_ended() -> None:
    desk = Desk(ScriptedEngine())
    desk.sessions.deadlines = kept = Kept()
    desk.ask(1)
    assert len(kept.open) == 1
    (await desk.engine.next()).answer("one")
    assert kept.open == set()


@pytest.mark.parametrize("raises", [False, True], ids=["fails", "raises"])
async def test_a_request_that_ended_while_it_was_handed_over_leaves_nothing_behind(raises: bool) -> None:
    desk = Desk(Hasty(raises))
    desk.sessions.deadlines = kept = Kept()
    desk.ask(1)
    [failed] = await of(desk.lanes, 1)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, EngineFailed)
    assert kept.open == set()
    assert await is_silent(desk.lanes)
    await desk.sessions.idle()


async def test_an_engine_that_does_not_go_on_with_answers_is_not_asked_to() -> None:
    desk = Desk(ScriptedEngine())
    request = GenerationRequest("r", Dialect.CHAT, b"{}", continuation=Continuation("a"))
    desk.sessions.begin(request, desk.lanes.open(1, 0))
    [(_, event, _)] = await desk.lanes.take()
    assert isinstance(event, Failed)
    assert isinstance(event.error, CannotContinue)
    assert not desk.engine.requests
    desk.sessions.continues = True
    desk.sessions.begin(request, desk.lanes.open(2, 0))
    assert len(desk.engine.requests) == 1
