"""The client for internal services, against a scheduler and workers that do as they are told."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest

from lbcore.client import Answer, Client, Embeddings
from lbcore.errors import InvalidRequest, ModelNotFound, NoReadyWorker
from lbcore.generation import Delta, Dialect, Embedding, Event, Finished, FinishReason, Started
from lbcore.pool_events import Released
from lbcore.types import Capacity, RouteFacts
from tests.fleet import MODEL, spec
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, fixture, soon


@fixture()
async def client(scheduler: SchedulerHost, worker: WorkerHost) -> AsyncIterator[Client]:
    """A client of a scheduler that knows one worker."""
    scheduler.join(replace(spec(), address=worker.address))
    async with Client(scheduler.address) as client:
        yield client


async def read(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def test_a_chat_answers_in_events(client: Client, worker: WorkerHost) -> None:
    messages = [{"role": "user", "content": "Who are you?"}]
    answer = asyncio.ensure_future(read(client.chat(MODEL, messages, temperature=0.5)))
    taken = await worker.engine.next()
    taken.answer("A", " model")
    assert await soon(answer) == [Started(10), Delta(text="A"), Delta(text=" model"), Finished(10, 0, 2)]
    assert taken.request.dialect is Dialect.CHAT
    assert orjson.loads(taken.request.body) == {"model": MODEL, "messages": messages, "temperature": 0.5}


async def test_a_client_s_tenant_and_priority_go_with_every_request(
    scheduler: SchedulerHost, worker: WorkerHost
) -> None:
    scheduler.join(replace(spec(capacity=Capacity(max_sequences=1)), address=worker.address))
    blocker = scheduler.route(RouteFacts("blocker", MODEL))
    async with Client(scheduler.address) as usual, Client(scheduler.address, tenant="t1", priority=5) as urgent:
        askings = []
        for number, client in enumerate((usual, urgent), start=1):
            askings.append(asyncio.ensure_future(client.complete(MODEL, "Once")))
            await scheduler.state.happened.until(lambda number=number: scheduler.waiting() == number)
        scheduler.state.handle(Released((blocker.ticket,)))
        taken = await worker.engine.next()
        assert taken.request.priority == 5
        taken.answer("first")
        assert (await soon(askings[1])).text == "first"
        askings[0].cancel()
        await asyncio.gather(*askings, return_exceptions=True)


@pytest.mark.parametrize("prompt", ["Once", [1, 2, 3]], ids=["text", "tokens"])
async def test_a_prompt_is_text_or_tokens(client: Client, worker: WorkerHost, prompt: str | list[int]) -> None:
    answer = asyncio.ensure_future(read(client.text(MODEL, prompt)))
    taken = await worker.engine.next()
    taken.finish()
    await soon(answer)
    assert taken.request.dialect is Dialect.COMPLETION
    assert orjson.loads(taken.request.body) == {"model": MODEL, "prompt": prompt}


async def test_a_whole_answer_is_its_text_its_end_and_its_usage(client: Client, worker: WorkerHost) -> None:
    answer = asyncio.ensure_future(client.complete(MODEL, [{"role": "user", "content": "Hi"}]))
    taken = await worker.engine.next()
    taken.say("Hel")
    taken.emit(Delta(text="lo", finish_reason=FinishReason.STOP))
    taken.finish(output_tokens=2)
    assert await soon(answer) == Answer("Hello", FinishReason.STOP, Finished(10, 0, 2))


@pytest.mark.parametrize(
    ("inputs", "sent"),
    [("one", ["one"]), (["one", "two"], ["one", "two"]), ([[1, 2], [3]], [[1, 2], [3]])],
    ids=["text", "texts", "tokens"],
)
async def test_vectors_are_numbers_in_the_order_of_inputs(
    client: Client, worker: WorkerHost, inputs: str | list[str] | list[list[int]], sent: list[object]
) -> None:
    answer = asyncio.ensure_future(client.embed(MODEL, inputs, dimensions=2))
    taken = await worker.engine.next()
    taken.start()
    for index in range(len(sent)):
        taken.emit(Embedding(index, struct.pack("<2f", index, 0.5)))
    taken.finish(output_tokens=0)
    expected = tuple((float(index), 0.5) for index in range(len(sent)))
    assert await soon(answer) == Embeddings(expected, Finished(10, 0, 0))
    assert taken.request.dialect is Dialect.EMBEDDING
    assert orjson.loads(taken.request.body) == {"model": MODEL, "input": sent, "dimensions": 2}


async def test_what_is_no_token_cannot_be_embedded(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.embed(MODEL, [[-1]])
    assert caught.value.param == "input"


async def test_one_answer_cannot_be_several(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.complete(MODEL, "Once", n=2)
    assert caught.value.param == "n"


@pytest.mark.parametrize("limit", [-1, 10**12, True, "many", None])
async def test_a_strange_limit_is_for_the_engine_to_judge(client: Client, worker: WorkerHost, limit: object) -> None:
    answer = asyncio.ensure_future(read(client.text(MODEL, "Once", max_tokens=limit)))
    (await worker.engine.next()).finish()
    assert await soon(answer) == [Finished(10, 0, 1)]


async def test_an_answer_left_half_read_stops_at_the_worker(client: Client, worker: WorkerHost) -> None:
    events = client.text(MODEL, "Once")
    first = asyncio.ensure_future(anext(events))
    (await worker.engine.next()).say("upon")
    assert await soon(first) == Delta(text="upon")
    await events.aclose()
    await worker.engine.happened.until(lambda: worker.engine.aborted)
    await worker.emptied()


async def test_a_cancelled_answer_stops_at_the_worker(client: Client, worker: WorkerHost) -> None:
    answer = asyncio.ensure_future(client.complete(MODEL, "Once"))
    await worker.engine.next()
    answer.cancel()
    await worker.engine.happened.until(lambda: worker.engine.aborted)


async def test_a_dead_worker_is_passed_over(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost, client: Client
) -> None:
    dead = await wire.worker()
    await dead.stop()
    scheduler.join(replace(spec("a"), address=dead.address))
    answers = [asyncio.ensure_future(client.complete(MODEL, "Once")) for _ in range(2)]
    for _ in answers:
        (await worker.engine.next()).answer("upon")
    assert [(await soon(answer)).text for answer in answers] == ["upon", "upon"]
    await scheduler.state.happened.until(lambda: scheduler.endpoint("a").credit_requests == 0)  # type: ignore[union-attr]


async def test_an_unknown_model_is_not_found(client: Client) -> None:
    with pytest.raises(ModelNotFound):
        await soon(client.complete("other", "Once"))


async def test_without_a_scheduler_nobody_is_ready(scheduler: SchedulerHost, client: Client) -> None:
    await scheduler.stop()
    with pytest.raises(NoReadyWorker):
        await soon(client.complete(MODEL, "Once"))
