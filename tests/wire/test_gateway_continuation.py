"""A worker is lost under an answer, over real connections: the client sees one answer, and nothing of the seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from lbcore.errors import WorkerUnreachable
from lbcore.generation import Continuation, Delta, Finished, FinishReason, Started
from tests.fakes import ScriptedRequest, settle
from tests.fleet import MODEL, spec
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, fixture, soon
from tests.wire.gateway_host import CHAT, Gateway, before_worker

STOP = Delta(finish_reason=FinishReason.STOP)


class Pair:
    """Two workers behind a gateway, and which of them has the request."""

    def __init__(self, gateway: Gateway, workers: tuple[WorkerHost, WorkerHost]) -> None:
        self.gateway = gateway
        self.workers = workers
        self._next = [asyncio.ensure_future(worker.engine.next()) for worker in workers]

    async def taken(self) -> tuple[WorkerHost, ScriptedRequest]:
        """Who is asked next, and for what."""
        done, _ = await asyncio.wait(self._next, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        at = self._next.index(done.pop())
        request = self._next[at].result()
        self._next[at] = asyncio.ensure_future(self.workers[at].engine.next())
        return self.workers[at], request

    def close(self) -> None:
        for task in self._next:
            task.cancel()


@fixture()
async def pair(wire: Wire, scheduler: SchedulerHost, worker: WorkerHost) -> AsyncIterator[Pair]:
    other = await wire.worker()
    for host in (worker, other):
        host.sessions.continues = True
    scheduler.join(replace(spec("w1"), address=other.address))
    async with before_worker(wire, scheduler, worker) as gateway:
        pair = Pair(gateway, (worker, other))
        yield pair
        pair.close()


class Reader:
    """A client of the pair's gateway that reads as it likes."""

    def __init__(self, pair: Pair) -> None:
        self._http = pair.gateway.client
        self.lines: list[str] = []
        self.status = 0

    async def ask(self, *, stream: bool = True, headers: dict[str, str] | None = None, **more: object) -> None:
        options: dict[str, object] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        told = {"X-Request-ID": "mine", **(headers or {})}
        asked = {**CHAT, "model": MODEL, **options, **more}
        self._asking = asyncio.ensure_future(self._http.post("/v1/chat/completions", json=asked, headers=told))

    async def hears(self, text: str) -> None:
        """Reads the stream up to an event with this in it."""
        self._response = await soon(self._asking)
        while not self.lines or text not in self.lines[-1]:
            await self._event()

    async def end(self) -> list[dict[str, Any]]:
        """Reads the stream to its good end; returns its events."""
        self._response = await soon(self._asking)
        while not self.lines or self.lines[-1] != "[DONE]":
            await self._event()
        assert await soon(self._response.content.read()) == b"\n"
        return [orjson.loads(line) for line in self.lines[:-1]]

    async def whole(self) -> dict[str, Any]:
        response = await soon(self._asking)
        self.status = response.status
        answer: dict[str, Any] = await soon(response.json())
        return answer

    async def _event(self) -> None:
        line = await soon(self._response.content.readline())
        assert line, "the stream broke off"
        if line != b"\n":
            self.lines.append(line.decode().removeprefix("data: ").rstrip("\n"))


@fixture()
async def client(pair: Pair) -> Reader:
    return Reader(pair)


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def token(text: str, number: int) -> Delta:
    return Delta(text=text, token_ids=(number,))


async def test_a_stream_goes_on_with_the_same_id_one_role_and_the_usage_of_the_whole(
    pair: Pair, client: Reader
) -> None:
    await client.ask()
    first, taken = await pair.taken()
    taken.emit(Started(10, 4))
    taken.emit(token("Hel", 7))
    taken.emit(token("lo ", 8))
    await client.hears("lo ")
    await first.stop()
    second, rest = await pair.taken()
    assert second is not first
    assert rest.request.continuation == Continuation("Hello ", "", (7, 8))
    assert rest.request.body == taken.request.body
    rest.emit(Started(12, 10))
    rest.emit(token("you", 9))
    rest.emit(STOP)
    rest.emit(Finished(10, 10, 3))
    chunks = await client.end()
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-mine"}
    roles = [choice["delta"].get("role") for chunk in chunks for choice in chunk["choices"]]
    assert [role for role in roles if role] == ["assistant"]
    assert text_of(chunks) == "Hello you"
    usage = chunks[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (10, 3, 13)


async def test_a_whole_answer_goes_on_or_is_begun_again(pair: Pair, client: Reader) -> None:
    await client.ask(stream=False)
    first, taken = await pair.taken()
    taken.emit(Started(10))
    taken.emit(token("Hel", 7))
    await settle()
    await first.stop()
    _, rest = await pair.taken()
    # Whether the first token had arrived when its worker went is for the network to say.
    if rest.request.continuation is None:
        rest.emit(token("Hel", 7))
    else:
        assert rest.request.continuation == Continuation("Hel", "", (7,))
    rest.emit(token("lo", 8))
    rest.emit(STOP)
    rest.emit(Finished(10, 0, 2))
    answer = await client.whole()
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("more", [{"n": 2}, {"response_format": {"type": "json_object"}}], ids=["n", "json"])
async def test_a_whole_answer_that_none_can_go_on_with_is_begun_again(
    pair: Pair, client: Reader, more: dict[str, Any]
) -> None:
    await client.ask(stream=False, **more)
    first, taken = await pair.taken()
    taken.emit(Started(10))
    taken.emit(token("lost", 7))
    await settle()
    await first.stop()
    _, again = await pair.taken()
    assert again.request.continuation is None
    for choice in range(more.get("n", 1)):
        again.emit(Delta(choice, "Hello", (8,), finish_reason=FinishReason.STOP))
    again.emit(Finished(10, 0, 1))
    answer = await client.whole()
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hello"}


@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ({"n": 2}, {}),
        ({"response_format": {"type": "json_object"}}, {}),
        ({}, {"X-LB-Continue": "0"}),
    ],
    ids=["n", "json", "opt-out"],
)
async def test_a_stream_that_must_not_be_gone_on_with_ends_in_one_error_event_and_well(
    pair: Pair, client: Reader, more: dict[str, Any], headers: dict[str, str]
) -> None:
    await client.ask(headers=headers, **more)
    first, taken = await pair.taken()
    taken.emit(Started(10))
    taken.emit(token("Hel", 7))
    await client.hears("Hel")
    await first.stop()
    await client.hears("error")
    assert orjson.loads(client.lines[-1])["error"]["code"] == "stream_interrupted"
    # A clean end of the chunks, or this would raise.
    assert await soon(client._response.content.read()) == b"\n"


async def test_a_worker_that_must_go_hands_its_streams_over(pair: Pair, client: Reader) -> None:
    await client.ask()
    first, taken = await pair.taken()
    taken.emit(Started(10))
    taken.emit(token("Hel", 7))
    await client.hears("Hel")
    first.sessions.stop_all(WorkerUnreachable("The worker was stopped."))
    _, rest = await pair.taken()
    rest.emit(token("lo", 8))
    rest.emit(STOP)
    rest.emit(Finished(10, 0, 2))
    assert text_of(await client.end()) == "Hello"
    assert "lb_gateway_continued_answers_total 1.0" in await pair.gateway.metrics()


async def test_where_no_engine_can_go_on_the_client_hears_of_the_loss(pair: Pair, client: Reader) -> None:
    for host in pair.workers:
        host.sessions.continues = False
    await client.ask()
    first, taken = await pair.taken()
    taken.emit(Started(10))
    taken.emit(token("Hel", 7))
    await client.hears("Hel")
    await first.stop()
    await client.hears("stream_interrupted")
