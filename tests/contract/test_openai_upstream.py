"""What is special about somebody else's server: all that it may do wrong, and what it is told and asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from random import Random

import orjson
import pytest
import structlog

from lbcore.clock import Clock, MonotonicClock
from lbcore.errors import (
    BodyTooLarge,
    Cancelled,
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    Saturated,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.generation import Dialect, Failed, FinishReason
from tests.contract.engines import Answer, EngineCase, Feature, Watch
from tests.contract.scripted import (
    CASE,
    MODEL,
    USAGE,
    Exchange,
    Script,
    ScriptedServer,
    bad_ends,
    chunk,
    cut_after,
    hang_up,
    idle,
    passing,
    running,
    until,
)
from tests.contract.upstreams import KEY, LlamaCppHttpServer, WithUpstream
from tests.fakes import ManualClock, settle
from worker import demo
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions
from worker.engines.openai.engine import OpenAIEngine, UpstreamOptions


async def test_a_body_arrives_as_it_came_but_for_what_must_change() -> None:
    server = ScriptedServer()
    messages = b'"messages":[{"role":"user","content":"x","stream":1}]'
    body = b'{ "model":"m","temperature":0.10000000000000000001, "stream":false,\n %s,"odd": 1e-400 }' % messages
    async with running(server) as watch:
        answer = await watch.submit(Dialect.CHAT, body).end()
        assert answer.text() == "Hello there"
        assert (answer.finished.prompt_tokens, answer.finished.cached_tokens, answer.finished.output_tokens) == (
            50,
            10,
            2,
        )
    assert server.exchanges[0].body == (
        b'{"temperature":0.10000000000000000001,\n %s,"odd": 1e-400 ,'
        b'"stream":true,"stream_options":{"include_usage":true},"model":"the-model"}' % messages
    )
    assert server.exchanges[0].request.path == "/v1/chat/completions"


async def test_a_body_that_needs_no_change_arrives_as_it_came() -> None:
    server = ScriptedServer()
    body = b'{"stream":true,"model":"the-model","prompt":"x" ,"stream_options": {"include_usage": true}}'
    async with running(server) as watch:
        await watch.submit(Dialect.COMPLETION, body).end()
    assert server.exchanges[0].body == body
    assert server.exchanges[0].request.path == "/v1/completions"


async def fault(message: str, exchange: Exchange, status: int = 400, **more: object) -> None:
    await exchange.reply(status, {"error": {"message": message, **more}})


async def half_an_event(exchange: Exchange) -> None:
    await exchange.send(chunk("Hello"))
    await exchange.raw(b'data: {"choices":[{"index":0,"delta":{"cont')


async def too_long(exchange: Exchange) -> None:
    await exchange.raw(b"data: " + b"x" * (17 * 2**20))


BAD: dict[str, tuple[Script, type[Exception], str, str, str | None]] = {
    "400": (
        lambda it: fault("top_p must be below 1", it, param="top_p"),
        InvalidRequest,
        "refused",
        "top_p must be below 1",
        "top_p",
    ),
    "422": (
        lambda it: it.reply(422, {"detail": [{"loc": ["body", "top_k"], "msg": "not a number", "input": "secret"}]}),
        InvalidRequest,
        "refused",
        "not a number",
        "top_k",
    ),
    "413": (lambda it: fault("too large", it, 413), BodyTooLarge, "refused", "too large", None),
    "context, vLLM": (
        lambda it: fault("This model's maximum context length is 4096 tokens. However, you requested 5000", it),
        ContextLengthExceeded,
        "refused",
        "4096",
        "messages",
    ),
    "context, SGLang": (
        lambda it: it.reply(
            400,
            {"object": "error", "message": "The input (900 tokens) is longer than the model's context length (512)."},
        ),
        ContextLengthExceeded,
        "refused",
        "900",
        "messages",
    ),
    "context, llama.cpp": (
        lambda it: fault("request (4002 tokens) exceeds it", it, type="exceed_context_size_error"),
        ContextLengthExceeded,
        "refused",
        "4002",
        "messages",
    ),
    "context, by code": (
        lambda it: fault("Too much: 77", it, 500, code="context_length_exceeded"),
        ContextLengthExceeded,
        "refused",
        "77",
        "messages",
    ),
    "401": (
        lambda it: fault(f"wrong key {KEY}", it, 401),
        EngineFailed,
        "key_refused",
        "refuses the worker's key",
        None,
    ),
    "404": (lambda it: fault("no model x", it, 404), EngineFailed, "missing", "no model x", None),
    "429": (lambda it: it.reply(429, {}, **{"Retry-After": "7"}), Saturated, "saturated", "busy", None),
    "503": (lambda it: fault("loading", it, 503), Saturated, "saturated", "loading", None),
    "500, a page": (lambda it: it.reply(500, "<html>secret</html>"), EngineFailed, "failed", "status 500", None),
    "500": (lambda it: fault("CUDA error", it, 500), EngineFailed, "failed", "CUDA error", None),
    "307": (lambda it: it.reply(307, {}, Location="/v1/elsewhere"), EngineFailed, "failed", "status 307", None),
    "200, a page": (lambda it: it.reply(200, "<html>secret</html>"), EngineFailed, "unreadable", "a web page", None),
    "200, an error": (lambda it: fault("no template", it, 200, code=400), InvalidRequest, "refused", "template", None),
    "200, nothing": (lambda it: it.reply(200, {}), EngineFailed, "unreadable", "no answer", None),
    "200, no JSON": (
        lambda it: it.reply(200, "{"),
        EngineFailed,
        "unreadable",
        "page",
        None,
    ),
    "an error first": (
        lambda it: it.send({"error": {"message": "bad grammar", "code": 400}}),
        InvalidRequest,
        "refused",
        "bad grammar",
        None,
    ),
    "an error in between": (
        lambda it: it.send(chunk("Hello"), {"error": {"message": "died", "code": 500}}, "[DONE]"),
        EngineFailed,
        "failed",
        "died",
        None,
    ),
    "it gives up": (lambda it: it.send(chunk("Hello", "abort")), EngineFailed, "failed", "gave the request up", None),
    "hung up": (hang_up, WorkerUnreachable, "unreachable", "cannot be reached", None),
    "an empty stream": (lambda it: it.raw(b": nothing\n\n"), WorkerUnreachable, "interrupted", "broke off", None),
    "done at once": (lambda it: it.send("[DONE]"), WorkerUnreachable, "interrupted", "broke off", None),
    "cut in between": (lambda it: cut_after(it, chunk("Hello")), StreamInterrupted, "interrupted", "broke off", None),
    "ended in between": (lambda it: it.send(chunk("Hello")), StreamInterrupted, "interrupted", "broke off", None),
    "done in between": (
        lambda it: it.send(chunk("Hello"), "[DONE]"),
        StreamInterrupted,
        "interrupted",
        "broke off",
        None,
    ),
    "half an event": (half_an_event, StreamInterrupted, "interrupted", "broke off", None),
    "no JSON in an event": (lambda it: it.send("{secret"), EngineFailed, "unreadable", "no JSON", None),
    "choices of another kind": (
        lambda it: it.send({"choices": ["secret"]}),
        EngineFailed,
        "unreadable",
        "cannot",
        None,
    ),
    "too many choices": (
        lambda it: it.send({"choices": [{"index": 5, "text": "secret"}]}),
        EngineFailed,
        "unreadable",
        "cannot be read",
        None,
    ),
    "an event without end": (too_long, EngineFailed, "unreadable", "without end", None),
}


async def test_a_large_body_arrives_whole() -> None:
    server = ScriptedServer()
    content = "word \\ " * 500_000
    async with running(server) as watch:
        assert (await watch.chat(content).end()).finished
    assert orjson.loads(server.exchanges[0].body)["messages"][0]["content"] == content


@pytest.mark.parametrize("name", BAD)
async def test_whatever_goes_wrong_is_one_clear_error(name: str) -> None:
    script, error, how, words, param = BAD[name]
    server = ScriptedServer(script)
    async with running(server) as watch:
        answer = await watch.chat("Hello").end()
        assert type(answer.error) is error
        assert words in str(answer.error)
        assert "secret" not in str(answer.error)
        assert KEY not in str(answer.error)
        assert "127.0.0.1" not in str(answer.error)
        assert bad_ends(watch) == {how: 1}
        if isinstance(answer.error, InvalidRequest):
            assert answer.error.param == param
        if name == "429":
            assert isinstance(answer.error, Saturated)
            assert answer.error.retry_after_s == 7
        await idle(watch)
        server.script = lambda exchange: exchange.answer("Well", " again")
        assert (await watch.chat("Hello").end()).text() == "Well again"
        await idle(watch)


async def test_what_is_no_http_is_one_clear_error() -> None:
    good = ScriptedServer()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line.startswith(b"GET"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with other, running(at=(f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}",)) as watch:
        answer = await watch.chat("Hello").end()
        assert isinstance(answer.error, EngineFailed)
        assert "no HTTP" in answer.error.message
    assert not good.exchanges


@pytest.mark.parametrize("said", [(), (chunk("Hello"),)])
async def test_a_server_that_falls_silent_is_given_up(said: tuple[object, ...]) -> None:
    silence = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if said:
            await exchange.send(*said)
        await silence.wait()

    server, clock = ScriptedServer(script), ManualClock()
    async with running(server, clock=clock, upstream_timeout_s=60.0) as watch:
        answer = watch.chat("Hello")
        await server.happened.until(lambda: server.exchanges)
        await answer.until(lambda answer: len(answer.events) >= 2 * len(said))
        await clock.elapse(59)
        assert not answer.ended
        await clock.elapse(2)
        await answer.end()
        assert isinstance(answer.error, StreamInterrupted if said else WorkerUnreachable)
        assert "60 s" in str(answer.error)
        assert bad_ends(watch) == {"stalled" if said else "timed_out": 1}
        await server.happened.until(lambda: server.ended)
        await idle(watch)


async def test_an_answer_in_one_piece_is_an_answer() -> None:
    message = {
        "content": "Well",
        "reasoning": "Hm",
        "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": {"on": True}}}],
    }
    chat = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    text = {"choices": [{"index": 0, "text": "Well", "finish_reason": "eos_token"}]}
    server = ScriptedServer(lambda it: it.reply(200, chat if "chat" in it.request.path else text))
    async with running(server) as watch:
        answer = await watch.chat("Hello").end()
        (delta,) = answer.deltas
        assert (delta.text, delta.reasoning, delta.finish_reason) == ("Well", "Hm", FinishReason.TOOL_CALLS)
        assert [(call.id, call.name, call.arguments) for call in delta.tool_calls] == [("c", "look", '{"on":true}')]
        assert answer.finished.prompt_tokens == 50
        other = watch.complete("Hello")
        await other.end()
        watch.answers.remove(other)
        assert (other.text(), other.finish_reason(), other.finished.output_tokens) == ("Well", FinishReason.STOP, 1)


async def test_a_stream_in_any_dress_is_understood() -> None:
    async def script(exchange: Exchange) -> None:
        stream = (
            b"\xef\xbb\xbf: hello\r\n\r\nevent: x\r\ndata: "
            + orjson.dumps(chunk("caf\N{LATIN SMALL LETTER E WITH ACUTE}"))
            + b"\r\n\r\ndata: null\r\n\r\ndata:"
            + orjson.dumps(chunk("\N{SLIGHTLY SMILING FACE}", "stop", usage=USAGE))
            + b"\r\rdata: [DONE]"
        )
        for place in range(len(stream)):
            await exchange.raw(stream[place : place + 1])

    async with running(ScriptedServer(script)) as watch:
        answer = await watch.chat("Hello").end()
        assert answer.text() == "caf\N{LATIN SMALL LETTER E WITH ACUTE}\N{SLIGHTLY SMILING FACE}"


async def test_a_connection_closed_while_idle_costs_nothing() -> None:
    posts = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal posts
        served = False
        while line := await reader.readline():
            length = 0
            while (header := await reader.readline()).strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            await reader.readexactly(length)
            body = b"{}"
            if line.startswith(b"POST"):
                posts += 1
                if served:
                    break
                served = True
                body = orjson.dumps(
                    {"choices": [{"index": 0, "text": "Well", "finish_reason": "stop"}], "usage": USAGE}
                )
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, running(at=(url,), upstream_metrics="", clock=ManualClock()) as watch:
        for _ in range(3):
            answer = await watch.complete("Hello").end()
            await idle(watch)
            assert answer.text() == "Well"
    assert posts > 3


async def test_connections_are_used_again() -> None:
    server = ScriptedServer()
    async with running(server) as watch:
        for _ in range(5):
            await watch.chat("Hello").end()
            await idle(watch)
    assert len(server.exchanges) == 5
    assert len(server.connections) == 1


async def cancelled(watch: Watch, server: ScriptedServer, answer: Answer) -> None:
    watch.abort(answer.request_id)
    await settle()
    assert isinstance((await answer.end()).error, Cancelled)
    await server.happened.until(lambda: server.ended == 1)
    await idle(watch)


@pytest.mark.parametrize("deltas", [0, 1, 3])
async def test_the_server_hears_of_a_cancellation_at_once(deltas: int) -> None:
    async def script(exchange: Exchange) -> None:
        for _ in range(deltas):
            await exchange.send(chunk("Hello"))
        await asyncio.Event().wait()

    server = ScriptedServer(script)
    async with running(server) as watch:
        answer = watch.chat("Hello")
        await server.happened.until(lambda: server.exchanges)
        await answer.until(lambda answer: len(answer.deltas) == deltas)
        assert server.ended == 0
        await cancelled(watch, server, answer)


async def test_vllm_is_asked_for_token_ids_and_for_adapters_by_their_names() -> None:
    def script(exchange: Exchange) -> Awaitable[None]:
        choice = {"index": 0, "delta": {"content": "Hello"}, "finish_reason": None, "token_ids": [7, 8]}
        last = {"index": 0, "delta": {}, "finish_reason": "length", "token_ids": [9]}
        usage = {"prompt_tokens": 3, "completion_tokens": 3}
        first = {"choices": [choice], "prompt_token_ids": [1, 2, 3]}
        return exchange.send(first, {"choices": [last]}, {"choices": [], "usage": usage}, "[DONE]")

    server = ScriptedServer(script, owner="vllm")
    card = {"id": MODEL, "owned_by": "vllm", "max_model_len": 99}
    server.models = {"data": [card, {"id": "lora", "parent": MODEL}, {"id": "other", "parent": None}]}
    async with running(server, case=replace(CASE, tells_token_ids=True)) as watch:
        assert watch.info.adapters == ("lora",)
        answer = await watch.chat("Hello").end()
        assert answer.token_ids() == [7, 8, 9]
        assert answer.started.prompt_tokens == 3
        await watch.submit(Dialect.CHAT, {"model": "lora", "messages": [{"role": "user", "content": "x"}]}).end()
    sent = [orjson.loads(exchange.body) for exchange in server.exchanges]
    assert [body["model"] for body in sent] == [MODEL, "lora"]
    assert all(body["return_token_ids"] is True for body in sent)


async def started(server: ScriptedServer, clock: Clock | None = None, **options: object) -> None:
    await server.start()
    given = {"upstream": (server.url,), "upstream_api_key": KEY, **options}
    engine = OpenAIEngine(MODEL, UpstreamOptions(**given), clock or MonotonicClock(), Random(1))  # type: ignore[arg-type]
    try:
        await engine.start()
    finally:
        await engine.close()
        await server.stop()


async def test_a_model_that_is_not_there_is_refused_with_those_that_are() -> None:
    server = ScriptedServer()
    server.models = {"data": [{"id": "one"}, {"id": "two"}]}
    with pytest.raises(ConfigError, match=r"--model: .* has no model the-model; it has one, two"):
        await started(server)


async def test_a_key_that_is_refused_is_said_without_it() -> None:
    server = ScriptedServer()
    server.models_status = 401
    with pytest.raises(ConfigError, match="--upstream-api-key") as caught:
        await started(server)
    assert KEY not in caught.value.message


async def test_a_server_that_never_comes_is_waited_for_as_long_as_told() -> None:
    server, clock = ScriptedServer(), ManualClock()
    server.health_status = 503
    with structlog.testing.capture_logs() as logs:
        starting = asyncio.create_task(started(server, clock, upstream_start_timeout_s=30.0))
        await passing(clock, starting.done)
    assert clock.now() >= 1030
    with pytest.raises(ConfigError, match="--upstream: no server answered within 30 s"):
        await starting
    assert [line["event"] for line in logs] == ["waiting_for_upstream"]


async def test_a_server_that_comes_late_is_waited_for() -> None:
    server, clock = ScriptedServer(), ManualClock()
    server.health_status = 503
    starting = asyncio.create_task(started(server, clock))
    await until(lambda: server.looks)
    assert not starting.done()
    server.health_status = 200
    await passing(clock, starting.done)
    await starting


@pytest.mark.parametrize(
    "url", ["host:1", "ftp://host", "http://", "http://me:secret@host", "http://host?x=secret", "http://host:x", ""]
)
async def test_a_url_that_is_none_is_refused_and_not_shown(url: str) -> None:
    engine = OpenAIEngine(MODEL, UpstreamOptions(upstream=(url,)), MonotonicClock(), Random(1))
    with pytest.raises(ConfigError, match="--upstream") as caught:
        await engine.start()
    assert "secret" not in caught.value.message
    await engine.close()


async def test_the_key_is_sent_and_shown_nowhere() -> None:
    server = ScriptedServer(lambda it: fault(f"not {KEY}", it, 403))
    with structlog.testing.capture_logs() as logs:
        async with running(server) as watch:
            answer = await watch.chat("Hello").end()
            assert isinstance(watch.engine, OpenAIEngine)
            shown = [
                repr(watch.engine._options),
                repr(watch.engine._session),
                repr(watch.engine._upstreams),
                repr(answer.events),
            ]
        await server.stop()
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in "".join([*shown, repr(logs)])


async def test_requests_before_the_start_and_after_the_end_are_refused() -> None:
    server = ScriptedServer()
    await server.start()
    engine = OpenAIEngine(MODEL, UpstreamOptions(upstream=(server.url + "/v1/",)), MonotonicClock(), Random(1))
    watch = Watch(CASE, engine)
    assert isinstance((await watch.chat("Hello").end()).error, WorkerUnreachable)
    await watch.start()
    assert (await watch.chat("Hello").end()).finished
    await watch.close()
    assert isinstance((await watch.chat("Hello").end()).events[-1], Failed)
    await server.stop()


async def test_the_real_server_says_what_the_embedded_one_says() -> None:
    questions = [entry.question for entry in demo.load_faq()]
    texts: list[list[str]] = []
    for engine in (
        WithUpstream(LlamaCppHttpServer()),
        LlamaCppEngine(demo.GGUF_PATH, LlamaCppOptions(), MonotonicClock()),
    ):
        watch = Watch(EngineCase("any", lambda: engine, frozenset(Feature), tells_token_ids=False), engine)  # noqa: B023
        await watch.start()
        answers = [watch.chat(question) for question in questions]
        texts.append([(await answer.end()).text() for answer in answers])
        await watch.close()
    assert texts[0] == texts[1] == [entry.answer for entry in demo.load_faq()]
