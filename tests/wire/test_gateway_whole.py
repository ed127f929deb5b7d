"""Answers in one piece, from the engine to the client: complete, in few messages, and failed as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.errors import openai_error
from lbcore import dispatch
from lbcore.errors import EngineFailed, LoadBalancerError, Saturated
from lbcore.generation import Delta, Event, Finished, FinishReason, Started, TokenLogprob, TopLogprob
from lbcore.wire import clients
from lbcore.wire.convert import event_from_proto
from tests.fakes import ScriptedRequest, settle
from tests.fleet import MODEL
from tests.wire.browser import Answer, Browser, connect
from tests.wire.browser import said as said_by
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, eventually, fixture
from tests.wire.gateway_host import CHAT, Gateway, before_worker


@fixture()
async def gateway(wire: Wire, scheduler: SchedulerHost, worker: WorkerHost) -> AsyncIterator[Gateway]:
    async with before_worker(wire, scheduler, worker) as gateway:
        yield gateway


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every event that arrives at the gateway."""
    events: list[Event] = []

    def read(message: Any) -> Event | None:
        event = event_from_proto(message)
        if event is not None:
            events.append(event)
        return event

    monkeypatch.setattr(clients, "event_from_proto", read)
    return events


async def asked(
    browser: Browser, worker: WorkerHost, **fields: object
) -> tuple[asyncio.Future[Answer], ScriptedRequest]:
    """A request on its way, and what of it the engine has."""
    asking = asyncio.ensure_future(browser.ask(orjson.dumps({**CHAT, "model": MODEL, **fields})))
    return asking, await worker.engine.next()


async def say(engine: ScriptedRequest, events: list[Event], turns: int) -> None:
    """Emits events, with so many turns of the event loop between each and the next."""
    for event in events:
        engine.emit(event)
        if turns:
            await settle(turns)


def tokens(count: int, choice: int = 0, *, reason: FinishReason = FinishReason.LENGTH) -> list[Event]:
    """So many tokens of a choice, the last of which ends it."""
    return [
        Delta(
            choice=choice,
            text=f"{choice}.{number} é",
            token_ids=(number,),
            finish_reason=reason if number == count - 1 else None,
        )
        for number in range(count)
    ]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if type(event) is Delta)


@pytest.mark.parametrize("turns", [0, 3], ids=["at once", "one by one"])
@pytest.mark.parametrize("count", [1, 2, 3, 2000])
async def test_a_whole_answer_is_complete(
    browser: Browser, worker: WorkerHost, heard: list[Event], count: int, turns: int
) -> None:
    asking, engine = await asked(browser, worker)
    said = tokens(count)
    await say(engine, [Started(7, 2), *said, Finished(7, 2, count)], turns)
    answer = await asking
    assert answer.status == 200
    body = orjson.loads(answer.body)
    [choice] = body["choices"]
    assert choice["message"]["content"] == text_of(said)
    assert choice["finish_reason"] == "length"
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (7, count)
    deltas = [event for event in heard if type(event) is Delta]
    assert len(deltas) <= 2 + count // 20
    # Another worker would need them.
    assert [token for delta in deltas for token in delta.token_ids] == [*range(count)]


async def test_the_first_token_of_a_whole_answer_does_not_wait(
    browser: Browser, worker: WorkerHost, heard: list[Event]
) -> None:
    # The time to it is a figure, and from it on no other worker is asked.
    asking, engine = await asked(browser, worker)
    await say(engine, [Started(7, 0), Delta(text="a"), Delta(text="b")], 3)
    await eventually(lambda: len(heard) >= 2)
    await settle()
    assert heard == [Started(7, 0), Delta(text="a")]
    await say(engine, [Finished(7, 0, 2)], 0)
    assert orjson.loads((await asking).body)["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize("turns", [0, 3], ids=["at once", "one by one"])
@pytest.mark.parametrize("count", [1, 2, 1000])
async def test_each_of_two_choices_is_complete(browser: Browser, worker: WorkerHost, count: int, turns: int) -> None:
    asking, engine = await asked(browser, worker, n=2)
    one, two = tokens(count, reason=FinishReason.STOP), tokens(count + 1, 1)
    mixed = [event for pair in zip(one, two, strict=False) for event in pair] + two[count:]
    await say(engine, [Started(7, 0), *mixed, Finished(7, 0, 2 * count + 1)], turns)
    answer = await asking
    body = orjson.loads(answer.body)
    assert [choice["message"]["content"] for choice in body["choices"]] == [text_of(one), text_of(two)]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    assert body["usage"]["completion_tokens"] == 2 * count + 1


@pytest.mark.parametrize("count", [1, 2, 1000])
async def test_every_logprob_of_a_whole_answer_arrives(browser: Browser, worker: WorkerHost, count: int) -> None:
    asking, engine = await asked(browser, worker, logprobs=True, top_logprobs=1)
    said: list[Event] = []
    for number in range(count):
        token = f"{number} "
        entry = TokenLogprob(token, -number / 8, token.encode(), (TopLogprob(token, -number / 8, token.encode()),))
        reason = FinishReason.STOP if number == count - 1 else None
        said.append(Delta(text=token, token_ids=(number,), logprobs=(entry,), finish_reason=reason))
    await say(engine, [Started(7, 0), *said, Finished(7, 0, count)], 0)
    [choice] = orjson.loads((await asking).body)["choices"]
    assert choice["message"]["content"] == text_of(said)
    assert choice["finish_reason"] == "stop"
    told = choice["logprobs"]["content"]
    assert [(entry["token"], entry["logprob"]) for entry in told] == [
        (f"{number} ", -number / 8) for number in range(count)
    ]


async def test_an_end_that_comes_without_text_is_told(browser: Browser, worker: WorkerHost) -> None:
    asking, engine = await asked(browser, worker)
    end = Delta(finish_reason=FinishReason.STOP)
    await say(engine, [Started(7, 0), Delta(text="a"), Delta(text="b"), end, Finished(7, 0, 2)], 0)
    [choice] = orjson.loads((await asking).body)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ab", "stop")


@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize("error", [EngineFailed("It broke."), Saturated("Full.", retry_after_s=1.0)])
async def test_a_whole_answer_that_fails_after_its_first_token_is_an_error_and_nothing_else(
    gateway: Gateway, browser: Browser, worker: WorkerHost, count: int, error: LoadBalancerError
) -> None:
    asking, engine = await asked(browser, worker)
    await say(engine, [Started(7, 0), *tokens(count + 1)[:-1]], 3)
    engine.fail(error)
    answer = await asking
    assert answer.status == openai_error(error).status
    assert orjson.loads(answer.body)["error"]["message"] == error.message
    # Nobody else is there, and the connection serves on.
    assert len(worker.engine.requests) == 1
    await worker.emptied()
    asking, engine = await asked(browser, worker)
    engine.answer("Hel", "lo")
    assert orjson.loads((await asking).body)["choices"][0]["message"]["content"] == "Hello"


async def test_a_whole_answer_whose_only_worker_is_lost_after_its_first_token_is_an_error(
    browser: Browser, worker: WorkerHost, heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "PATIENCE_S", 0.0)
    asking, engine = await asked(browser, worker)
    await say(engine, [Started(7, 0), *tokens(50)], 0)
    await eventually(lambda: len(heard) >= 2)
    await worker.stop()
    answer = await asking
    assert answer.status >= 500
    assert [*orjson.loads(answer.body)] == ["error"]


async def test_a_client_that_goes_away_before_its_whole_answer_stops_the_engine(
    gateway: Gateway, worker: WorkerHost
) -> None:
    browser = await connect(gateway)
    asking, engine = await asked(browser, worker)
    await say(engine, [Started(7, 0), *tokens(30)[:-1]], 3)
    browser.reset()
    await worker.engine.happened.until(lambda: worker.engine.aborted)
    await worker.emptied()
    await gateway.let_go()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_stream_beside_a_whole_answer_gets_its_tokens_as_they_come(
    gateway: Gateway, browser: Browser, worker: WorkerHost, heard: list[Event]
) -> None:
    whole, engine_of_whole = await asked(browser, worker)
    other = await connect(gateway)
    stream, engine_of_stream = await asked(other, worker, stream=True)
    said = tokens(20)
    for number, event in enumerate(said):
        engine_of_whole.emit(event)
        engine_of_stream.emit(event)
        # The first of both, and of the stream every one before the next is said.
        await eventually(lambda count=number + 2: len(heard) == count)
    for engine in (engine_of_whole, engine_of_stream):
        engine.emit(Finished(7, 0, 20))
    assert orjson.loads((await whole).body)["choices"][0]["message"]["content"] == text_of(said)
    assert said_by(await stream) == text_of(said)
    other.close()
