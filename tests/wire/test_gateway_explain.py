"""X-LB-Decision through the gateway: on whatever answer, when both the operator and the client want it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from lbcore.errors import EngineFailed, InvalidRequest
from lbcore.generation import Embedding, Finished, Started
from lbcore.types import Capacity
from tests.fakes import ScriptedRequest
from tests.fleet import MODEL, spec
from tests.wire.browser import OTHER_WAY, PATH, STREAM, WHOLE, Answer, Browser, connect, said
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, fixture, soon
from tests.wire.gateway_host import CHAT, Gateway, before_worker

WANTED = b"X-LB-Explain: 1"
BOTH_WAYS = pytest.mark.parametrize("path", [PATH, OTHER_WAY], ids=["express", "aiohttp"])
FULL = Capacity(max_sequences=0)


@fixture()
async def telling(wire: Wire, scheduler: SchedulerHost, worker: WorkerHost) -> AsyncIterator[Browser]:
    """A client of a gateway that may tell, in front of a worker and of one that is full."""
    scheduler.join(spec("full", capacity=FULL))
    async with before_worker(wire, scheduler, worker, debug_headers=True) as gateway:
        browser = await connect(gateway)
        yield browser
        browser.close()


async def asked(browser: Browser, worker: WorkerHost, path: bytes = PATH, **fields: object) -> tuple[Any, Any]:
    """An explained request on its way to its answer, and as the engine has it."""
    asking = asyncio.ensure_future(browser.ask(orjson.dumps({"model": MODEL, **fields}), WANTED, path=path))
    return asking, await worker.engine.next()


def decision(answer: Answer) -> dict[str, Any]:
    header = answer.headers["x-lb-decision"]
    assert len(header) < 4096
    found: dict[str, Any] = orjson.loads(header)
    return found


@BOTH_WAYS
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_answers_say_why_they_come_from_where_they_come(
    telling: Browser, worker: WorkerHost, path: bytes, stream: bool
) -> None:
    asking, request = await asked(telling, worker, path, messages=CHAT["messages"], stream=stream)
    request.answer("Hel", "lo")
    answer = await soon(asking)
    assert said(answer) == "Hello"
    found = decision(answer)
    assert (found["worker"], found["policy"], found["waited_ms"]) == ("w0", "least_requests", 0.0)
    assert found["reason"] == "the only one that can take it; left out: 1 by has_room"
    assert [one["worker"] for one in found["candidates"]] == ["w0"]


async def test_so_do_embeddings(telling: Browser, worker: WorkerHost) -> None:
    asking, request = await asked(telling, worker, b"/v1/embeddings", input="Hi")
    for event in (Started(1), Embedding(0, b"\0\0\0\0"), Finished(1, 0, 0)):
        request.emit(event)
    answer = await soon(asking)
    assert answer.status == 200
    assert decision(answer)["worker"] == "w0"


async def test_so_do_errors_of_a_worker(telling: Browser, worker: WorkerHost) -> None:
    asking, request = await asked(telling, worker, messages=CHAT["messages"])
    request.fail(InvalidRequest("No."))
    answer = await soon(asking)
    assert answer.status == 400
    assert decision(answer)["worker"] == "w0"


async def test_after_a_retry_it_is_the_last_decision_that_is_told(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost, telling: Browser
) -> None:
    asking, first = await asked(telling, worker, messages=CHAT["messages"])
    second_host = await wire.worker()
    scheduler.join(replace(spec("w1"), address=second_host.address))
    first.fail(EngineFailed("Broken."))
    second: ScriptedRequest = await second_host.engine.next()
    second.answer("Hello")
    found = decision(await soon(asking))
    assert found["worker"] == "w1"
    assert "1 by untried" in found["reason"]


@BOTH_WAYS
async def test_nobody_is_told_where_it_is_not_allowed(gateway: Gateway, browser: Browser, path: bytes) -> None:
    for body in (WHOLE, STREAM):
        answer = await browser.ask(body, WANTED, path=path)
        assert answer.status == 200
        assert "x-lb-decision" not in answer.headers
        assert not gateway.dispatcher.asked[-1][0].explain


async def test_nobody_is_told_who_does_not_ask(telling: Browser, worker: WorkerHost) -> None:
    for header in (b"X-LB-Explain: 0", b"X-Other: 1"):
        asking = asyncio.ensure_future(telling.ask(orjson.dumps({**CHAT, "model": MODEL}), header))
        (await worker.engine.next()).answer("Hello")
        assert "x-lb-decision" not in (await soon(asking)).headers
