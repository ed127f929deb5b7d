"""Requests that wait for a worker, from the client's side: answered later, called off by going away, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from lbcore.pool_events import Released
from lbcore.router import QueueLimits
from lbcore.types import Capacity, Route, RouteFacts
from tests.fleet import MODEL
from tests.wire.browser import OTHER_WAY, PATH, Browser, connect, said
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, eventually, soon
from tests.wire.gateway_host import CHAT, Gateway, before_worker

WHOLE = orjson.dumps({**CHAT, "model": MODEL})
STREAM = orjson.dumps({**CHAT, "model": MODEL, "stream": True})
BODIES = pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
BOTH_WAYS = pytest.mark.parametrize("path", [PATH, OTHER_WAY], ids=["express", "aiohttp"])


@asynccontextmanager
async def occupied(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost
) -> AsyncIterator[tuple[Gateway, Browser, Route]]:
    """A gateway in front of a worker for one request, which has one."""
    async with before_worker(wire, scheduler, worker, Capacity(max_sequences=1)) as gateway:
        browser = await connect(gateway)
        yield gateway, browser, scheduler.route(RouteFacts("blocker", MODEL))
        browser.close()


async def so_many_wait(scheduler: SchedulerHost, number: int) -> None:
    await scheduler.state.happened.until(lambda: scheduler.waiting() == number)


@BODIES
@BOTH_WAYS
async def test_a_request_waits_for_room_and_is_answered(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost, body: bytes, path: bytes
) -> None:
    async with occupied(wire, scheduler, worker) as (_, browser, blocker):
        asking = asyncio.ensure_future(browser.ask(body, path=path))
        await so_many_wait(scheduler, 1)
        assert not worker.engine.requests
        scheduler.state.handle(Released((blocker.ticket,)))
        (await worker.engine.next()).answer("Hello")
        assert said(await soon(asking)) == "Hello"


@BODIES
@BOTH_WAYS
async def test_a_client_that_goes_away_while_its_request_waits_leaves_nothing_behind(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost, body: bytes, path: bytes
) -> None:
    async with occupied(wire, scheduler, worker) as (gateway, browser, _):
        asking = asyncio.ensure_future(browser.ask(body, path=path))
        await so_many_wait(scheduler, 1)
        browser.reset()
        await so_many_wait(scheduler, 0)
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: not gateway.exchanges.in_flight)
        assert scheduler.credit()[0] == 1
        assert not worker.engine.requests


@BODIES
async def test_a_request_whose_time_is_over_while_it_waits_is_504(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost, body: bytes
) -> None:
    async with occupied(wire, scheduler, worker) as (_, browser, _):
        asking = asyncio.ensure_future(browser.ask(body, b"X-Request-Timeout-MS: 30000"))
        await so_many_wait(scheduler, 1)
        await scheduler.clock.elapse(30.01)
        answer = await soon(asking)
        assert answer.status == 504
        assert orjson.loads(answer.body)["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        (QueueLimits(late_binding=False, max_requests=0), 503, "saturated"),
        (QueueLimits(late_binding=False, max_tenant_requests=0), 429, "rate_limited"),
    ],
    ids=["queue", "tenant"],
)
async def test_who_may_not_wait_is_told_when_to_come_back(
    wire: Wire, worker: WorkerHost, limits: QueueLimits, status: int, code: str
) -> None:
    scheduler = await wire.scheduler(limits)
    async with occupied(wire, scheduler, worker) as (_, browser, _):
        answer = await browser.ask(WHOLE, b"X-Tenant-ID: t1")
        assert answer.status == status
        assert orjson.loads(answer.body)["error"]["code"] == code
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_scheduler_that_is_lost_while_a_request_waits_is_503(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost
) -> None:
    async with occupied(wire, scheduler, worker) as (_, browser, _):
        asking = asyncio.ensure_future(browser.ask(WHOLE))
        await so_many_wait(scheduler, 1)
        await scheduler.stop()
        answer = await soon(asking)
        assert answer.status == 503
        assert orjson.loads(answer.body)["error"]["code"] == "no_ready_worker"
