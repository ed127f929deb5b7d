"""A client that reads slowly, from its socket to the engine: what it does not take stays at the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from tests.fakes import settle
from tests.fleet import MODEL
from tests.wire.browser import SlowReader, connect, said
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, fixture
from tests.wire.gateway_host import CHAT, Gateway, before_worker
from worker import lanes

STREAM = orjson.dumps({**CHAT, "model": MODEL, "stream": True})
WHOLE = orjson.dumps({**CHAT, "model": MODEL})


@fixture()
async def gateway(wire: Wire, scheduler: SchedulerHost, worker: WorkerHost) -> AsyncIterator[Gateway]:
    async with before_worker(wire, scheduler, worker) as gateway:
        yield gateway


async def test_a_stream_that_is_not_read_holds_up_no_other_and_is_complete_when_it_is(
    gateway: Gateway, worker: WorkerHost
) -> None:
    slow = SlowReader()
    await slow.ask(gateway, STREAM)
    engine = await worker.engine.next()
    texts = [f"{number}{'.' * 1000}" for number in range(20_000)]
    engine.start()
    for start in range(0, len(texts), 1000):
        engine.say(*texts[start : start + 1000])
        await settle(1)
    engine.finish()
    other = await connect(gateway)
    for body in (WHOLE, STREAM):
        asking = asyncio.ensure_future(other.ask(body))
        (await worker.engine.next()).answer("Hel", "lo")
        assert said(await asking) == "Hello"
    assert gateway.exchanges.in_flight == 1
    browser = await slow.read_on()
    assert said(await browser.answer()) == "".join(texts)
    await gateway.let_go()
    browser.close()
    other.close()


async def test_a_stream_that_nobody_reads_is_stopped_at_the_engine_before_it_fills_the_memory(
    gateway: Gateway, worker: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_WAITING_BYTES", 1_000_000)
    slow = SlowReader()
    await slow.ask(gateway, STREAM)
    engine = await worker.engine.next()
    said_bytes = 0
    while not worker.engine.aborted:
        engine.say("x" * 20_000)
        said_bytes += 20_000
        # What is kept between here and there: the kernel's buffers, and the room on the way.
        assert said_bytes < 100_000_000
        await settle(3)
    browser = await slow.read_on()
    answer = await browser.answer()
    *_, last = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert "error" in orjson.loads(last.removeprefix("data: "))
    await gateway.let_go()
    await worker.emptied()
    browser.close()


async def test_a_client_that_goes_away_while_it_is_paused_stops_the_engine(
    gateway: Gateway, worker: WorkerHost
) -> None:
    slow = SlowReader()
    await slow.ask(gateway, STREAM)
    engine = await worker.engine.next()
    for _ in range(1000):
        engine.say("x" * 20_000)
        await settle(3)
    assert worker.engine.aborted == []
    slow.close()
    await worker.engine.happened.until(lambda: worker.engine.aborted)
    await gateway.let_go()
    await worker.emptied()
