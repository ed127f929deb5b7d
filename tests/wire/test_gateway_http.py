"""The gateway's HTTP, driven by a real client over a dispatcher that answers as it is told."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse
from structlog.testing import capture_logs

from gateway.errors import GENERIC_MESSAGE
from lbcore.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    ModelNotFound,
    NoReadyWorker,
    RateLimited,
    Saturated,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.generation import Delta, Finished, Started
from lbcore.prefix import block_hashes
from lbcore.types import EndpointState
from lbcore.wire.routing_client import TableStep
from tests.wire.conftest import soon
from tests.wire.gateway_host import CHAT, COMPLETION, LIMIT, Gateway, Step, error_of


async def frames_of(response: ClientResponse) -> list[Any]:
    """The data of every event of a stream; the end mark as it is."""
    text = (await soon(response.read())).decode()
    assert text.endswith("\n\n")
    data = [frame.removeprefix("data: ") for frame in text.removesuffix("\n\n").split("\n\n")]
    return [item if item == "[DONE]" else orjson.loads(item) for item in data]


async def test_a_chat_is_answered_in_one_piece(gateway: Gateway) -> None:
    response = await gateway.chat()
    body = orjson.loads(await response.read())
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 5


async def test_a_completion_is_answered_in_one_piece(gateway: Gateway) -> None:
    response = await soon(gateway.client.post("/v1/completions", json=COMPLETION))
    body = orjson.loads(await response.read())
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "Hello")


async def test_a_stream_is_events_and_ends_with_the_mark(gateway: Gateway) -> None:
    response = await gateway.chat(stream=True)
    frames = await frames_of(response)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert frames[-1] == "[DONE]"
    texts = [frame["choices"][0]["delta"].get("content") for frame in frames[:-1]]
    assert "".join(filter(None, texts)) == "Hello"


async def test_a_token_reaches_the_client_before_the_next_is_there(gateway: Gateway) -> None:
    held = asyncio.Event()
    gateway.dispatcher.steps = [[Delta(text="first")], held, [Delta(text="second"), Finished(1, 0, 2)]]
    response = await gateway.chat(stream=True)
    first = b""
    while b'"first"' not in first:
        first += await soon(response.content.readany())
    assert b"second" not in first
    held.set()
    assert b"second" in await soon(response.read())


async def test_batches_without_anything_to_show_are_not_sent(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [
        [Started(3)],
        [Delta(text="")],
        [Delta(text="Hi")],
        [Delta(text="")],
        [Finished(3, 0, 1)],
    ]
    frames = await frames_of(await gateway.chat(stream=True))
    assert frames[-1] == "[DONE]"
    assert "Hi" in [frame["choices"][0]["delta"].get("content") for frame in frames[:-1]]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_without_a_token_is_still_one(gateway: Gateway, stream: bool) -> None:
    gateway.dispatcher.steps = [[Started(3), Finished(3, 0, 0)]]
    response = await gateway.chat(stream=stream)
    assert response.status == 200
    await soon(response.read())


async def test_the_dispatcher_learns_the_facts_and_gets_the_body_as_it_came(gateway: Gateway) -> None:
    prompt = "x" * 1000
    body = b'{"prompt":"%s", "model":"m","max_tokens":7,\n "new_field":1.10}' % prompt.encode()
    await soon(gateway.client.post("/v1/completions", data=body, headers={"X-Request-ID": "mine"}))
    facts, request = gateway.dispatcher.asked[0]
    assert request.body == body
    assert (request.request_id, request.timeout_s) == ("mine", 77.0)
    assert (facts.request_id, facts.model, facts.prompt_bytes, facts.max_output_tokens) == ("mine", "m", 1000, 7)
    assert (facts.prefix_hashes, facts.prefix_block_bytes) == (block_hashes(prompt.encode()), 0)


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({}, {}, ""),
        ({"X-Session-ID": "s1"}, {"user": "u1"}, "s1"),
        ({}, {"user": "u1"}, "u1"),
        ({"X-Session-ID": "has space"}, {"user": "u1"}, "u1"),
        ({"X-Session-ID": "s" * 129}, {}, ""),
    ],
    ids=["none", "header", "body", "unprintable", "long"],
)
async def test_a_session_is_the_header_s_or_else_the_body_s(
    gateway: Gateway, headers: dict[str, str], fields: dict[str, str], session: str
) -> None:
    await soon(gateway.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers=headers))
    assert gateway.dispatcher.asked[0][0].session_id == session


async def test_a_header_that_is_no_text_is_nobody_s_session(gateway: Gateway) -> None:
    answer = await _raw(gateway, b"X-Session-ID: \xff\xfe\r\n", orjson.dumps(CHAT))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert gateway.dispatcher.asked[0][0].session_id == ""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nowhere"])
@pytest.mark.parametrize("given", ["abc-123", "!~", "x" * 128])
async def test_the_client_s_request_id_comes_back(gateway: Gateway, path: str, given: str) -> None:
    response = await soon(gateway.client.post(path, json=CHAT, headers={"X-Request-ID": given}))
    assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "has space", "x" * 129, "tab\tbed"])
async def test_a_request_without_a_good_id_gets_one(gateway: Gateway, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    response = await soon(gateway.client.post("/v1/chat/completions", json=CHAT, headers=headers))
    made = response.headers["X-Request-ID"]
    assert len(made) == 32
    assert gateway.dispatcher.asked[0][1].request_id == made


ERRORS: list[tuple[LoadBalancerError, int]] = [
    (InvalidRequest("No.", param="messages[0].role", code="invalid_value"), 400),
    (ContextLengthExceeded("Too long.", param="messages"), 400),
    (ModelNotFound("No such model."), 404),
    (Saturated("Full.", retry_after_s=2.5), 503),
    (RateLimited("Yours are full.", retry_after_s=2.5), 429),
    (EngineFailed("Broken."), 500),
    (NoReadyWorker("Nobody."), 503),
    (WorkerUnreachable("Gone."), 503),
    (DeadlineExceeded("Late."), 504),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("error", "status"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
async def test_an_error_before_the_first_token_is_a_status(
    gateway: Gateway, error: LoadBalancerError, status: int, stream: bool
) -> None:
    gateway.dispatcher.steps = [error]
    response = await gateway.chat(stream=stream)
    body = await error_of(response)
    assert response.status == status
    assert response.headers["X-Request-ID"]
    assert body["message"] == error.message
    assert ("Retry-After" in response.headers) == (status in (429, 503))
    assert await gateway.counted(status)


async def test_when_to_come_back_is_told_in_whole_seconds_and_exactly(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [Saturated("Full.", retry_after_s=2.5)]
    response = await gateway.chat()
    assert (response.headers["Retry-After"], response.headers["Retry-After-Ms"]) == ("3", "2500")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_crash_is_an_error_that_tells_nothing(gateway: Gateway, stream: bool) -> None:
    gateway.dispatcher.steps = [RuntimeError("secret detail")]
    with capture_logs() as logs:
        response = await gateway.chat(stream=stream)
    body = await error_of(response)
    assert response.status == 500
    assert body["message"] == GENERIC_MESSAGE
    assert [line["event"] for line in logs] == ["request_crashed", "request"]


async def test_an_error_after_the_first_token_is_the_last_event(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], StreamInterrupted("The worker was lost.")]
    response = await gateway.chat(stream=True)
    frames = await frames_of(response)
    assert response.status == 200
    assert frames[-1]["error"]["message"] == "The worker was lost."
    assert "[DONE]" not in frames
    assert await gateway.counted(502)


async def test_a_crash_after_the_first_token_is_the_last_event_too(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], RuntimeError("secret detail")]
    frames = await frames_of(await gateway.chat(stream=True))
    assert frames[-1]["error"]["message"] == GENERIC_MESSAGE
    assert "[DONE]" not in frames


async def test_an_error_after_the_first_token_is_a_status_where_nothing_was_sent(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], StreamInterrupted("The worker was lost.")]
    response = await gateway.chat()
    assert response.status == 502
    assert (await error_of(response))["message"] == "The worker was lost."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'{"model":"m"', None),
        (b'{"model":"m\xff","messages":[]}', None),
        (b'{"messages":[{"role":"user","content":"Hi"}]}', "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"n":0}', "n"),
        (b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":"yes"}', "stream"),
    ],
)
async def test_bad_input_is_refused_by_name_and_goes_nowhere(gateway: Gateway, body: bytes, param: str | None) -> None:
    response = await soon(gateway.client.post("/v1/chat/completions", data=body))
    assert response.status == 400
    assert (await error_of(response))["param"] == param
    assert gateway.dispatcher.asked == []


async def test_an_unknown_route_answers_in_openai_s_shape(gateway: Gateway) -> None:
    response = await soon(gateway.client.get("/v1/nothing?here=1"))
    assert response.status == 404
    assert "GET /v1/nothing" in (await error_of(response))["message"]


async def test_a_wrong_method_answers_in_openai_s_shape_and_names_the_right_one(gateway: Gateway) -> None:
    response = await soon(gateway.client.get("/v1/chat/completions"))
    assert response.status == 405
    assert response.headers["Allow"] == "POST"
    assert (await error_of(response))["code"] == "method_not_allowed"


def padded(size: int) -> bytes:
    """A good body of this length."""
    body = orjson.dumps(CHAT)
    return body[:-1] + b" " * (size - len(body)) + b"}"


async def test_a_body_of_the_largest_size_is_let_in(gateway: Gateway) -> None:
    response = await soon(gateway.client.post("/v1/chat/completions", data=padded(LIMIT)))
    assert response.status == 200


async def test_a_body_over_the_largest_size_is_413(gateway: Gateway) -> None:
    response = await soon(gateway.client.post("/v1/chat/completions", data=padded(LIMIT + 1)))
    assert response.status == 413
    assert (await error_of(response))["code"] == "body_too_large"
    assert await gateway.counted(413, model="")


async def test_a_body_of_unknown_length_is_measured_as_it_comes(gateway: Gateway) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield padded(LIMIT)

    response = await soon(gateway.client.post("/v1/chat/completions", data=pieces()))
    assert response.status == 413


async def test_a_body_that_unpacks_to_more_than_the_largest_size_is_413(gateway: Gateway) -> None:
    packed = gzip.compress(padded(LIMIT * 10))
    assert len(packed) < LIMIT
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    response = await soon(gateway.client.post("/v1/chat/completions", data=packed, headers=headers))
    assert response.status == 413


async def test_a_packed_body_is_unpacked(gateway: Gateway) -> None:
    packed = gzip.compress(orjson.dumps(CHAT))
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    response = await soon(gateway.client.post("/v1/chat/completions", data=packed, headers=headers))
    assert response.status == 200
    assert gateway.dispatcher.asked[0][1].body == orjson.dumps(CHAT)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Encoding: gzip\r\n", b"this is not gzip"),
        (b"Transfer-Encoding: chunked\r\n", b"zz\r\nhello\r\n0\r\n\r\n"),
    ],
    ids=["gzip", "chunks"],
)
async def test_a_body_that_cannot_be_read_is_the_client_s_fault(gateway: Gateway, headers: bytes, body: bytes) -> None:
    with capture_logs() as logs:
        answer = await _raw(gateway, headers, body)
    assert answer.split(b" ")[1] == b"400"
    assert "request_crashed" not in [line["event"] for line in logs]
    assert gateway.dispatcher.asked == []


async def test_a_connection_serves_on_after_an_error(gateway: Gateway) -> None:
    for body, status in ((b"{", 400), (orjson.dumps(CHAT), 200), (b"[]", 400), (orjson.dumps(CHAT), 200)):
        response = await soon(gateway.client.post("/v1/chat/completions", data=body))
        assert response.status == status
        await response.read()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_goes_away_before_the_first_token_stops_its_request(gateway: Gateway, stream: bool) -> None:
    gateway.dispatcher.steps = [asyncio.Event()]
    with capture_logs() as logs:
        asking = asyncio.ensure_future(gateway.chat(stream=stream))
        await gateway.dispatcher.happened.until(lambda: gateway.dispatcher.asked)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await gateway.let_go()
    assert await gateway.counted(499)
    assert [line["event"] for line in logs] == ["request"]


async def test_a_client_that_goes_away_in_mid_stream_stops_its_request(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], asyncio.Event()]
    with capture_logs() as logs:
        response = await gateway.chat(stream=True)
        await soon(response.content.readany())
        response.close()
        await gateway.let_go()
    assert await gateway.counted(499)
    assert [line["event"] for line in logs] == ["request"]


async def test_a_client_that_goes_away_while_tokens_flow_stops_its_request(gateway: Gateway) -> None:
    # The write may meet the closed connection before the cancellation does.
    gone = asyncio.Event()
    flood: list[Step] = [[Delta(text="x" * 1000)] for _ in range(1000)]
    gateway.dispatcher.steps = [[Delta(text="Hel")], gone, *flood]
    with capture_logs() as logs:
        response = await gateway.chat(stream=True)
        await soon(response.content.readany())
        response.close()
        gone.set()
        await gateway.let_go()
    assert await gateway.counted(499)
    assert [line["event"] for line in logs] == ["request"]


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"], ids=["plain", "not plain"])
async def test_a_client_that_goes_away_in_mid_body_is_no_crash_and_asks_nobody(gateway: Gateway, header: bytes) -> None:
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%bContent-Length: 1000\r\n\r\n{" % header)
        await writer.drain()
        # Connections are accepted and read in their order: the other's answer says that this one was read.
        assert (await soon(gateway.client.get("/health"))).status == 200
        writer.close()
        await writer.wait_closed()
        assert (await gateway.chat()).status == 200
        await gateway.let_go()
    assert "request_crashed" not in [line["event"] for line in logs]
    assert len(gateway.dispatcher.asked) == 1


async def test_the_gateway_is_alive_whoever_serves(gateway: Gateway) -> None:
    gateway.fleet.take(TableStep(True, (), ()))
    gateway.handlers.draining = True
    assert (await soon(gateway.client.get("/health"))).status == 200


async def test_the_gateway_is_ready_while_a_worker_is(gateway: Gateway) -> None:
    assert (await soon(gateway.client.get("/ready"))).status == 200
    gateway.serves("m", state=EndpointState.DRAINING)
    assert (await soon(gateway.client.get("/ready"))).status == 503


async def test_a_draining_gateway_is_not_ready_and_serves_on(gateway: Gateway) -> None:
    gateway.handlers.draining = True
    assert (await soon(gateway.client.get("/ready"))).status == 503
    assert (await gateway.chat()).status == 200


async def test_models_are_listed_by_name(gateway: Gateway) -> None:
    gateway.serves("z", "org/a")
    body = orjson.loads(await (await soon(gateway.client.get("/v1/models"))).read())
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["org/a", "z"]
    assert {model["created"] for model in body["data"]} == {1_700_000_000}


@pytest.mark.parametrize("path", ["/v1/models/org/a", "/v1/models/org%2Fa"])
async def test_a_model_is_found_by_its_name(gateway: Gateway, path: str) -> None:
    gateway.serves("org/a")
    response = await soon(gateway.client.get(path))
    assert response.status == 200
    assert orjson.loads(await response.read())["id"] == "org/a"


async def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    response = await soon(gateway.client.get("/v1/models/none"))
    assert response.status == 404
    assert (await error_of(response))["code"] == "model_not_found"


async def test_a_request_leaves_its_marks_in_the_metrics(gateway: Gateway) -> None:
    held = asyncio.Event()
    gateway.dispatcher.steps = [[Delta(text="a")], held, [Finished(30, 10, 2)]]
    response = await gateway.chat(stream=True)
    await soon(response.content.readany())
    assert "lb_gateway_requests_in_flight 1.0" in await gateway.metrics()
    gateway.clock.advance(3.0)
    held.set()
    await soon(response.read())
    await gateway.let_go()
    page = await gateway.metrics()
    for line in (
        'lb_gateway_requests_total{code="200",model="m",route="chat"} 1.0',
        'lb_gateway_prompt_tokens_total{model="m"} 30.0',
        'lb_gateway_cached_prompt_tokens_total{model="m"} 10.0',
        'lb_gateway_output_tokens_total{model="m"} 2.0',
        'lb_gateway_ttft_seconds_count{model="m",route="chat"} 1.0',
        'lb_gateway_ttft_seconds_sum{model="m",route="chat"} 0.0',
        'lb_gateway_duration_seconds_sum{model="m",route="chat"} 3.0',
        "lb_gateway_requests_in_flight 0.0",
    ):
        assert line in page


async def test_failed_attempts_are_counted_by_reason(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [WorkerUnreachable("Gone.")]
    await gateway.chat()
    assert 'lb_gateway_failed_attempts_total{reason="WORKER_UNREACHABLE"} 1.0' in await gateway.metrics()


async def test_names_that_clients_make_up_are_no_labels(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [ModelNotFound("No such model.")]
    for number in range(20):
        await gateway.chat(model=f"made-up-{number}")
    page = await gateway.metrics()
    assert "made-up" not in page
    assert 'lb_gateway_requests_total{code="404",model="",route="chat"} 20.0' in page


async def test_metrics_come_in_the_format_that_was_asked_for(gateway: Gateway) -> None:
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await soon(gateway.client.get("/metrics", headers=headers))
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert (await response.text()).endswith("# EOF\n")


async def test_the_log_says_of_a_request_who_served_it_and_never_what_it_said(gateway: Gateway) -> None:
    with capture_logs() as logs:
        await gateway.chat(messages=[{"role": "user", "content": "my secret"}])
    [line] = logs
    assert (line["worker_id"], line["attempts"], line["code"], line["output_tokens"]) == ("w0", 1, 200, 2)
    assert "my secret" not in repr(logs)


async def _raw(gateway: Gateway, headers: bytes, body: bytes) -> bytes:
    """What the gateway answers to a chat with these header lines, byte for byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    length = b"" if b"chunked" in headers else b"Content-Length: %d\r\n" % len(body)
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    writer.write(start + headers + length + b"\r\n" + body)
    answer = await soon(reader.read())
    writer.close()
    await writer.wait_closed()
    return answer
