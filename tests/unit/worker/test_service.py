"""A request between its message and its events: answered in as few messages as can be, and gone without a trace."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import orjson
import pytest_asyncio

from lbcore.errors import Cancelled
from lbcore.generation import Delta, Dialect, Failed, Finished, GenerationRequest, Started
from lbcore.types import Ticket
from tests.fakes import ManualClock, settle
from worker.engines.sim.engine import SimEngine, SimOptions
from worker.lanes import Lanes
from worker.load import LoadTracker
from worker.service import Sessions


class Desk:
    """Sessions over an unpaced engine, and the lanes of one stream."""

    def __init__(self) -> None:
        self.engine = SimEngine(SimOptions(step_ms=0), ManualClock())
        self.load = LoadTracker()
        self.sessions = Sessions(self.engine, self.load, 10, lambda: None)
        self.lanes = Lanes()

    def ask(self, call_id: int, max_tokens: int) -> None:
        body = orjson.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": max_tokens, "n": 2})
        request = GenerationRequest(f"r{call_id}", Dialect.CHAT, body, Ticket(call_id), timeout_s=60.0)
        self.sessions.begin(request, self.lanes.open(call_id, 0))


@pytest_asyncio.fixture()
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    await desk.engine.start()
    yield desk
    await desk.engine.close()


async def test_a_short_answer_leaves_in_one_message(desk: Desk) -> None:
    writer = asyncio.ensure_future(desk.lanes.take())
    await settle()
    desk.ask(1, max_tokens=1)
    assert [type(event) for _, event, _ in await writer] == [Started, Delta, Delta, Finished]


async def test_what_has_ended_is_gone_without_a_search_for_cycles(desk: Desk) -> None:
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


async def test_what_was_stopped_is_gone_without_a_search_for_cycles(desk: Desk) -> None:
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
