"""Embeddings from somebody else's server: what it is asked for, and all that it may answer instead of vectors."""

from __future__ import annotations

import asyncio
import struct
from base64 import b64encode

import orjson
import pytest

from lbcore.errors import (
    Cancelled,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    Saturated,
    WorkerUnreachable,
)
from lbcore.generation import Dialect, Embedding, Finished, Started
from tests.contract.engines import EngineCase, Feature, Watch
from tests.contract.scripted import (
    MODEL,
    Exchange,
    Script,
    ScriptedServer,
    bad_ends,
    hang_up,
    idle,
    running,
)
from tests.contract.upstreams import KEY, LlamaCppHttpServer, WithUpstream
from tests.fakes import ManualClock, settle
from worker.engines.openai import call

USAGE = {"prompt_tokens": 7, "total_tokens": 7}


def vector(place: int) -> list[float]:
    """What the scripted server makes of an input."""
    return [0.5 * place, 1.0, -2.0]


async def embed(exchange: Exchange) -> None:
    """Answers as a good server does, but with the last vector first."""
    asked = orjson.loads(exchange.body)
    count = len(asked["input"]) if isinstance(asked["input"], list) else 1
    data = [{"object": "embedding", "index": place, "embedding": vector(place)} for place in range(count)]
    if asked.get("encoding_format") == "base64":
        for one in data:
            one["embedding"] = b64encode(struct.pack("<3f", *one["embedding"])).decode()  # type: ignore[misc]
    await exchange.reply(200, {"object": "list", "data": data[::-1], "usage": USAGE})


def items(*embeddings: object) -> dict[str, object]:
    data = [{"index": place, "embedding": embedding} for place, embedding in enumerate(embeddings)]
    return {"object": "list", "data": data, "usage": USAGE}


@pytest.mark.parametrize("owner", ["somebody", "vllm", "llamacpp"])
async def test_vectors_come_in_order_whoever_makes_them(owner: str) -> None:
    server = ScriptedServer(embed, owner=owner)
    async with running(server) as watch:
        answer = await watch.embed(["a", "b", "c"]).end()
        assert isinstance(answer.events[0], Started)
        assert [one.vector for one in answer.embeddings] == [tuple(vector(place)) for place in range(3)]
        assert answer.finished == Finished(7, 0, 0)
        await idle(watch)
        assert watch.engine.load().prefill_tokens_per_s == 0, "so few tokens say nothing"
    assert server.exchanges[0].request.path == "/v1/embeddings"
    assert server.keys == [f"Bearer {KEY}"]


async def test_a_body_arrives_as_it_came_but_for_what_must_change() -> None:
    body = b'{ "model":"m","input":["x", [1,2]],"encoding_format":"base64", "odd": 1e-400 }'
    servers = [ScriptedServer(embed, owner=owner) for owner in ("somebody", "vllm")]
    for server in servers:
        async with running(server) as watch:
            assert len((await watch.submit(Dialect.EMBEDDING, body).end()).embeddings) == 2
    assert servers[0].exchanges[0].body == b'{"input":["x", [1,2]], "odd": 1e-400 ,"model":"the-model"}'
    # What it has already stays where it is.
    sent = orjson.loads(servers[1].exchanges[0].body)
    assert (sent["encoding_format"], sent["model"]) == ("base64", MODEL)


async def test_a_request_that_is_none_never_reaches_the_server() -> None:
    server = ScriptedServer(embed)
    async with running(server) as watch:
        answer = await watch.embed([]).end()
        assert isinstance(answer.error, InvalidRequest)
        assert answer.error.param == "input"
    assert not server.exchanges


async def half(exchange: Exchange) -> None:
    await exchange.raw(b'{"object":"list","data":[{"index":0,"embed')


async def cut(exchange: Exchange) -> None:
    await half(exchange)
    await asyncio.sleep(0)
    exchange.cut()


BAD: dict[str, tuple[Script, type[Exception], str, str, str | None]] = {
    "a page": (lambda it: it.reply(200, "<html>secret</html>"), EngineFailed, "unreadable", "a web page", None),
    "half JSON": (half, EngineFailed, "unreadable", "no JSON", None),
    "cut": (cut, WorkerUnreachable, "interrupted", "broke off", None),
    "nothing": (lambda it: it.reply(200, {}), EngineFailed, "unreadable", "no answer", None),
    "a stream": (lambda it: it.send({"choices": []}, "[DONE]"), EngineFailed, "unreadable", "no JSON", None),
    "too few": (lambda it: it.reply(200, items([1])), EngineFailed, "unreadable", "1 vectors for 2 inputs", None),
    "too many": (lambda it: it.reply(200, items([1], [2], [3])), EngineFailed, "unreadable", "3 vectors", None),
    "one twice": (
        lambda it: it.reply(200, {"data": [{"index": 1, "embedding": [1]}] * 2}),
        EngineFailed,
        "unreadable",
        "two vectors for one input",
        None,
    ),
    "no vector": (lambda it: it.reply(200, items([1], "secret")), EngineFailed, "unreadable", "cannot be read", None),
    "several sizes": (lambda it: it.reply(200, items([1], [1, 2])), EngineFailed, "unreadable", "several sizes", None),
    "200, an error": (
        lambda it: it.reply(200, {"error": {"message": "bad input", "code": 400}}),
        InvalidRequest,
        "refused",
        "bad input",
        None,
    ),
    "200, a failure": (
        lambda it: it.reply(200, {"error": {"message": "CUDA error", "code": 500}}),
        EngineFailed,
        "failed",
        "CUDA error",
        None,
    ),
    "no embeddings": (
        lambda it: it.reply(501, {"error": {"message": "This server does not support embeddings."}}),
        InvalidRequest,
        "refused",
        "This model makes no embeddings.",
        "model",
    ),
    "no route": (lambda it: it.reply(404, {"detail": "Not Found"}), InvalidRequest, "refused", "makes no", "model"),
    "no model": (
        lambda it: it.reply(404, {"error": {"message": "The model does not exist"}}),
        EngineFailed,
        "missing",
        "knows no such model",
        None,
    ),
    "too long": (
        lambda it: it.reply(400, {"error": {"message": "maximum context length is 512 tokens"}}),
        ContextLengthExceeded,
        "refused",
        "512",
        "input",
    ),
    "busy": (lambda it: it.reply(429, {}, **{"Retry-After": "7"}), Saturated, "saturated", "busy", None),
    "500": (lambda it: it.reply(500, "<html>secret</html>"), EngineFailed, "failed", "status 500", None),
    "hung up": (hang_up, WorkerUnreachable, "unreachable", "cannot be reached", None),
}


@pytest.mark.parametrize("name", BAD)
async def test_whatever_goes_wrong_is_one_clear_error(name: str) -> None:
    script, error, how, words, param = BAD[name]
    server = ScriptedServer(script)
    async with running(server) as watch:
        answer = await watch.embed(["a", "b"]).end()
        assert len(answer.events) == 1
        assert type(answer.error) is error
        assert words in str(answer.error)
        for hidden in ("secret", KEY, "127.0.0.1"):
            assert hidden not in str(answer.error)
        assert bad_ends(watch) == {how: 1}
        if isinstance(answer.error, InvalidRequest):
            assert answer.error.param == param
        await idle(watch)
        server.script = embed
        assert len((await watch.embed(["a", "b"]).end()).embeddings) == 2
        await idle(watch)


async def test_dimensions_that_a_server_passes_over_are_refused() -> None:
    async with running(ScriptedServer(embed)) as watch:
        assert len((await watch.embed("a", dimensions=3).end()).embeddings) == 1
        answer = await watch.embed("a", dimensions=2).end()
        assert isinstance(answer.error, InvalidRequest)
        assert answer.error.param == "dimensions"
        assert len(answer.events) == 1


async def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "MAX_VECTORS_BYTES", 2**20)

    async def script(exchange: Exchange) -> None:
        while True:
            await exchange.raw(b" " * 2**16)

    server = ScriptedServer(script)
    async with running(server) as watch:
        answer = await watch.embed("a").end()
        assert isinstance(answer.error, EngineFailed)
        assert "more than vectors can be" in answer.error.message
        assert bad_ends(watch) == {"unreadable": 1}
        await server.happened.until(lambda: server.ended)


async def test_a_large_answer_arrives_whole_beside_others() -> None:
    # Each number is one that 32 bits hold exactly.
    numbers = [0.25 * place for place in range(4096)]

    async def script(exchange: Exchange) -> None:
        if "chat" in exchange.request.path:
            await exchange.answer("Hello")
        else:
            await exchange.reply(200, items(*[numbers] * 100))

    async with running(ScriptedServer(script)) as watch:
        answer, other = watch.embed(["x"] * 100), watch.chat("Hello")
        assert (await other.end()).text() == "Hello"
        await answer.end()
        assert [one.vector for one in answer.embeddings] == [tuple(numbers)] * 100


@pytest.mark.parametrize("begun", [False, True])
async def test_a_server_that_never_answers_is_given_up(begun: bool) -> None:
    async def script(exchange: Exchange) -> None:
        if begun:
            await half(exchange)
        await asyncio.Event().wait()

    server, clock = ScriptedServer(script), ManualClock()
    async with running(server, clock=clock, upstream_timeout_s=60.0) as watch:
        answer = watch.embed("a")
        await server.happened.until(lambda: server.exchanges)
        await settle()
        await clock.elapse(59)
        assert not answer.ended
        await clock.elapse(62)
        assert isinstance((await answer.end()).error, WorkerUnreachable)
        assert "60 s" in str(answer.error)
        assert bad_ends(watch) == {"timed_out": 1}
        await server.happened.until(lambda: server.ended)
        await idle(watch)


@pytest.mark.parametrize("begun", [False, True])
async def test_the_server_hears_of_a_cancellation_at_once(begun: bool) -> None:
    async def script(exchange: Exchange) -> None:
        if begun:
            await half(exchange)
        await asyncio.Event().wait()

    server = ScriptedServer(script)
    async with running(server) as watch:
        answer = watch.embed("a")
        await server.happened.until(lambda: server.exchanges)
        assert server.ended == 0
        watch.abort(answer.request_id)
        assert isinstance((await answer.end()).error, Cancelled)
        await server.happened.until(lambda: server.ended == 1)
        await idle(watch)


@pytest.mark.parametrize(
    "bad", [hang_up, lambda it: it.reply(503, {}), lambda it: it.reply(429, {})], ids=["hung up", "503", "429"]
)
async def test_the_next_server_is_asked_when_one_cannot(bad: Script) -> None:
    servers = [ScriptedServer(bad), ScriptedServer(embed)]
    async with running(*servers) as watch:
        for _ in range(6):
            assert (await watch.embed(["a", "b"]).end()).embeddings[0] == Embedding(0, struct.pack("<3f", *vector(0)))
        assert servers[0].exchanges


async def test_nobody_else_is_asked_after_a_refusal() -> None:
    servers = [ScriptedServer(lambda it: it.reply(400, {"error": {"message": "no"}})) for _ in range(2)]
    async with running(*servers) as watch:
        assert isinstance((await watch.embed("a").end()).error, InvalidRequest)
        assert sum(len(server.exchanges) for server in servers) == 1


async def test_the_speed_of_prompts_is_measured_by_embeddings_too() -> None:
    usage = {"prompt_tokens": 5000, "total_tokens": 5000}
    server = ScriptedServer(lambda it: it.reply(200, items([1]) | {"usage": usage}))
    async with running(server) as watch:
        await watch.embed("a").end()
        await idle(watch)
        assert watch.engine.load().prefill_tokens_per_s > 0
        assert watch.engine.load().step_time_ms == 0


@pytest.mark.parametrize(
    ("embeds", "given"), [(False, {"input": "x"}), (True, {"input": "x", "dimensions": 5})], ids=["model", "dimensions"]
)
async def test_a_real_server_that_cannot_is_understood(embeds: bool, given: dict[str, object]) -> None:
    case = EngineCase("any", lambda: WithUpstream(LlamaCppHttpServer(embeds=embeds)), frozenset(Feature))
    watch = Watch(case)
    await watch.start()
    answer = await watch.submit(Dialect.EMBEDDING, given).end()
    assert isinstance(answer.error, InvalidRequest)
    assert answer.error.param == ("dimensions" if embeds else "model")
    await watch.close()
