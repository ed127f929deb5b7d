"""What goes over a client's connection, byte for byte, and what becomes of a client that reads slowly or goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import orjson
import pytest

from gateway.reply import HIGH_WATER_BYTES
from lbcore.errors import DeadlineExceeded, StreamInterrupted
from lbcore.generation import Delta, Finished
from tests.fakes import settle
from tests.wire.browser import OTHER_WAY, PATH, STREAM, WHOLE, Browser, SlowReader, connect, request, said
from tests.wire.conftest import eventually, fixture
from tests.wire.gateway_host import ANSWER, LIMIT, Gateway, Step

BOTH = pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
BOTH_WAYS = pytest.mark.parametrize("path", [PATH, OTHER_WAY], ids=["express", "aiohttp"])


@BOTH
async def test_an_answer_has_the_headers_that_clients_count_on(browser: Browser, body: bytes) -> None:
    answer = await browser.ask(body, b"X-Request-ID: mine")
    assert said(answer) == "Hello"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["date"].endswith(" GMT")
    assert parsedate_to_datetime(answer.headers["date"]).year >= 2024
    assert answer.headers.get("connection") is None


@BOTH
async def test_one_connection_serves_many_requests(browser: Browser, body: bytes) -> None:
    for number in range(5):
        answer = await browser.ask(body, b"X-Request-ID: r%d" % number)
        assert (answer.version, answer.headers["x-request-id"]) == (b"1.1", f"r{number}")
        assert said(answer) == "Hello"


async def test_whole_answers_streams_and_errors_follow_one_another_on_a_connection(browser: Browser) -> None:
    for body in (WHOLE, STREAM, b"{", STREAM, WHOLE, b"[]", STREAM):
        answer = await browser.ask(body)
        assert answer.status == (200 if body in (WHOLE, STREAM) else 400)
        if answer.status == 200:
            assert said(answer) == "Hello"


@BOTH
async def test_a_client_that_asks_to_close_is_told_so_and_the_connection_ends(browser: Browser, body: bytes) -> None:
    answer = await browser.ask(body, b"Connection: close")
    assert said(answer) == "Hello"
    assert answer.headers["connection"] == "close"
    assert await browser.is_over()


@BOTH
async def test_a_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection(browser: Browser, body: bytes) -> None:
    answer = await browser.ask(body, version=b"1.0")
    assert said(answer) == "Hello"
    assert answer.pieces == 0
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["x-request-id"]
    assert await browser.is_over()


async def test_a_client_of_http_1_0_that_wants_to_stay_may_for_whole_answers(browser: Browser) -> None:
    for _ in range(3):
        answer = await browser.ask(WHOLE, b"Connection: keep-alive", version=b"1.0")
        assert said(answer) == "Hello"
        assert answer.headers["connection"] == "keep-alive"


async def test_a_stream_ends_the_connection_of_http_1_0_even_if_it_wants_to_stay(browser: Browser) -> None:
    answer = await browser.ask(STREAM, b"Connection: keep-alive", version=b"1.0")
    assert said(answer) == "Hello"
    assert answer.headers["connection"] == "close"
    assert await browser.is_over()


@BOTH_WAYS
async def test_requests_that_come_at_once_are_answered_in_their_order(
    gateway: Gateway, browser: Browser, path: bytes
) -> None:
    bodies = [WHOLE, STREAM, STREAM, WHOLE, b"{", WHOLE]
    ids = [b"X-Request-ID: r%d" % at for at in range(len(bodies))]
    await browser.send(b"".join(request(body, name, path=path) for body, name in zip(bodies, ids, strict=True)))
    for at, body in enumerate(bodies):
        answer = await browser.answer()
        assert answer.headers["x-request-id"] == f"r{at}"
        assert ("transfer-encoding" in answer.headers) == (body == STREAM)
    assert len(gateway.dispatcher.asked) == 5


async def test_every_batch_of_a_stream_is_a_piece_of_its_own(gateway: Gateway, browser: Browser) -> None:
    texts = [f"{number} é\n" for number in range(50)]
    steps: list[Step] = [[Delta(text=text)] for text in texts]
    gateway.dispatcher.steps = [*steps, [Finished(3, 0, 50)]]
    answer = await browser.ask(STREAM)
    assert said(answer) == "".join(texts)
    assert answer.pieces == 51


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_error_in_mid_stream_ends_the_answer_as_http_wants_it(
    gateway: Gateway, browser: Browser, version: bytes
) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], StreamInterrupted("The worker was lost.")]
    answer = await browser.ask(STREAM, version=version)
    *_, last = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert orjson.loads(last.removeprefix("data: "))["error"]["message"] == "The worker was lost."
    if version == b"1.1":
        assert (await browser.ask(b"{")).status == 400


async def test_an_error_after_the_last_frame_says_nothing_more(gateway: Gateway, browser: Browser) -> None:
    # Whatever was said behind the last piece would be taken for the start of the next answer.
    gateway.dispatcher.steps = [[Delta(text="Hi!")], [Finished(3, 0, 2)], DeadlineExceeded("Late.")]
    answer = await browser.ask(STREAM)
    assert said(answer) == "Hi!"
    assert (await browser.ask(WHOLE)).status == 504


@pytest.mark.parametrize("size", [HIGH_WATER_BYTES // 2, HIGH_WATER_BYTES, 5_000_000])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_whole_answer_may_be_of_any_size(gateway: Gateway, browser: Browser, size: int, version: bytes) -> None:
    gateway.dispatcher.steps = [[Delta(text="x" * size)], [Finished(3, 0, 2)]]
    answer = await browser.ask(WHOLE, b"X-Request-ID: mine", version=version)
    assert said(answer) == "x" * size
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine"
    if version == b"1.1":
        gateway.dispatcher.steps = [[Delta(text="small"), Finished(3, 0, 2)]]
        assert said(await browser.ask(WHOLE)) == "small"


async def test_a_frame_may_be_of_any_size(gateway: Gateway, browser: Browser) -> None:
    gateway.dispatcher.steps = [[Delta(text="x" * 5_000_000)], [Finished(3, 0, 2)]]
    assert said(await browser.ask(STREAM)) == "x" * 5_000_000


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/chat/completions?api-version=1",
        b"/v1/chat/completions?",
        b"/v1/%63hat/completions",
        b"/v1/chat/completions#part",
        b"http://elsewhere/v1/chat/completions",
    ],
    ids=["query", "empty query", "percent", "fragment", "absolute"],
)
@BOTH
async def test_a_route_is_found_however_its_path_is_written(browser: Browser, path: bytes, body: bytes) -> None:
    assert said(await browser.ask(body, path=path)) == "Hello"


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/v1/chat/completions/",
        b"//v1/chat/completions",
        b"/V1/chat/completions",
        b"/v1",
        b"/v1/models/",
        b"/%ff%00",
    ],
)
async def test_an_unknown_path_is_not_found_and_the_connection_serves_on(browser: Browser, path: bytes) -> None:
    answer = await browser.ask(WHOLE, b"X-Request-ID: mine", path=path)
    assert answer.status == 404
    assert answer.headers["x-request-id"] == "mine"
    assert orjson.loads(answer.body)["error"]["message"]
    assert said(await browser.ask(WHOLE)) == "Hello"


@pytest.mark.parametrize("path", [b"/\xff", b"/v1/models/\xc3\xa9", b"*", b"no slash"])
async def test_what_is_no_path_is_refused_and_the_connection_ends(gateway: Gateway, path: bytes) -> None:
    browser = await connect(gateway)
    answer = await browser.ask(WHOLE, path=path)
    assert answer.status == 400
    assert await browser.is_over()
    assert gateway.dispatcher.asked == []
    browser.close()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        (b"GET", PATH, "POST"),
        (b"PUT", PATH, "POST"),
        (b"DELETE", b"/v1/models/m", "GET, HEAD"),
        (b"POST", b"/health", "GET, HEAD"),
        (b"POST", b"/v1/models", "GET, HEAD"),
        (b"OPTIONS", b"/v1/embeddings", "POST"),
        (b"PATCH", PATH, "POST"),
    ],
)
async def test_a_wrong_method_names_the_right_ones(browser: Browser, method: bytes, path: bytes, allowed: str) -> None:
    await browser.send(request(b"", method=method, path=path))
    answer = await browser.answer()
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert orjson.loads(answer.body)["error"]["code"] == "method_not_allowed"
    assert said(await browser.ask(WHOLE)) == "Hello"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/health", 200),
        (b"/ready", 200),
        (b"/v1/models", 200),
        (b"/v1/models/m", 200),
        (b"/metrics", 200),
        (b"/v1/models/none", 404),
        (b"/nowhere", 404),
        (PATH, 405),
    ],
)
async def test_head_gets_the_head_alone_and_the_connection_serves_on(
    browser: Browser, path: bytes, status: int
) -> None:
    await browser.send(request(b"", method=b"HEAD", path=path))
    answer = await browser.answer(has_body=False)
    assert answer.status == status
    assert int(answer.headers["content-length"]) > 0
    assert said(await browser.ask(WHOLE)) == "Hello"


@BOTH
async def test_a_request_may_come_in_pieces_of_any_size(gateway: Gateway, browser: Browser, body: bytes) -> None:
    whole = request(body)
    for at in range(len(whole)):
        await browser.send(whole[at : at + 1])
        await settle(2)
    assert said(await browser.answer()) == "Hello"
    assert gateway.dispatcher.asked[0][1].body == body


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_body_may_come_in_chunks(gateway: Gateway, browser: Browser, size: int) -> None:
    pieces = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    for _ in range(2):
        assert said(await browser.ask(chunks, b"Transfer-Encoding: chunked")) == "Hello"
    assert [asked.body for _, asked in gateway.dispatcher.asked] == [WHOLE, WHOLE]


async def test_who_asks_before_sending_its_body_is_told_to_go_on(gateway: Gateway, browser: Browser) -> None:
    # curl does so for bodies over a megabyte, and waits a second where nobody answers.
    head, body = request(WHOLE, b"Expect: 100-continue").split(b"\r\n\r\n")
    await browser.send(head + b"\r\n\r\n")
    interim = await browser.answer(has_body=False)
    assert interim.status == 100
    assert gateway.dispatcher.asked == []
    await browser.send(body)
    assert said(await browser.answer()) == "Hello"
    assert said(await browser.ask(WHOLE)) == "Hello"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_a_body_that_is_too_large_is_refused_however_it_comes(
    gateway: Gateway, browser: Browser, chunked: bool
) -> None:
    body = b"{" + b" " * (LIMIT * 20) + b"}"
    if chunked:
        whole = request(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), b"Transfer-Encoding: chunked")
    else:
        whole = request(body)
    await browser.send(whole)
    answer = await browser.answer()
    assert answer.status == 413
    assert orjson.loads(answer.body)["error"]["code"] == "body_too_large"
    assert gateway.dispatcher.asked == []


async def test_a_length_that_is_too_large_is_refused_before_the_body_comes(browser: Browser) -> None:
    await browser.send(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{" % (PATH, LIMIT * 1000))
    assert (await browser.answer()).status == 413


@BOTH
async def test_a_client_that_goes_away_before_its_answer_cancels_the_run(gateway: Gateway, body: bytes) -> None:
    gateway.dispatcher.steps = [asyncio.Event()]
    browser = await connect(gateway)
    await browser.send(request(body))
    await gateway.taken()
    browser.reset()
    await gateway.let_go()
    assert await gateway.counted(499)


async def test_a_client_that_goes_away_amid_its_answer_cancels_the_run(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], asyncio.Event()]
    browser = await connect(gateway)
    await browser.send(request(STREAM))
    await browser.hears(b"Hel")
    browser.reset()
    await gateway.let_go()
    assert await gateway.counted(499)


BIG = "x" * 65_536
FLOOD: list[Step] = [*([Delta(text=BIG)] for _ in range(200)), [Finished(3, 0, 200)]]
"""More than the kernel buffers for one connection."""


@fixture()
async def slow(gateway: Gateway) -> AsyncIterator[SlowReader]:
    """A client whose stream was paused, since it does not read."""
    gateway.dispatcher.steps = FLOOD
    slow = SlowReader()
    await slow.ask(gateway, STREAM)
    await gateway.dispatcher.happened.until(lambda: any(flow.is_paused for flow in gateway.dispatcher.flows))
    yield slow
    slow.close()


async def test_a_client_that_does_not_read_pauses_its_own_stream_and_no_other(
    gateway: Gateway, slow: SlowReader
) -> None:
    other = await connect(gateway)
    assert said(await other.ask(STREAM)) == BIG * 200
    gateway.dispatcher.steps = [[Delta(text="Hi"), Finished(3, 0, 1)]]
    assert said(await other.ask(WHOLE)) == "Hi"
    assert gateway.dispatcher.flows[0].is_paused
    assert gateway.exchanges.in_flight == 1
    other.close()


async def test_a_client_that_reads_again_gets_everything(gateway: Gateway, slow: SlowReader) -> None:
    browser = await slow.read_on()
    answer = await browser.answer()
    assert said(answer) == BIG * 200
    assert not gateway.dispatcher.flows[0].is_paused
    await gateway.let_go()
    assert await gateway.counted(200)
    gateway.dispatcher.steps = [[Delta(text="Hi"), Finished(3, 0, 1)]]
    assert said(await browser.ask(STREAM)) == "Hi"
    browser.close()


async def test_a_client_that_goes_away_while_its_stream_is_paused_cancels_the_run(
    gateway: Gateway, slow: SlowReader
) -> None:
    slow.close()
    await gateway.let_go()
    await eventually(lambda: not gateway.exchanges.in_flight)
    assert await gateway.counted(499)


async def test_a_stream_whose_client_reads_is_never_paused(gateway: Gateway, browser: Browser) -> None:
    await browser.ask(STREAM)
    assert gateway.dispatcher.flows[0].pauses == 0


async def test_a_connection_may_change_hands_while_its_client_has_much_to_read(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [[Delta(text=BIG * 200)], [Finished(3, 0, 200)]]
    slow = SlowReader()
    await slow.ask(gateway, WHOLE, request(b"", path=b"/health", method=b"GET"), request(WHOLE))
    await gateway.dispatcher.happened.until(lambda: gateway.dispatcher.closed)
    await settle()
    browser = await slow.read_on()
    assert said(await browser.answer()) == BIG * 200
    assert orjson.loads((await browser.answer()).body) == {"status": "ok"}
    assert said(await browser.answer()) == BIG * 200
    assert said(await browser.ask(WHOLE)) == BIG * 200
    browser.close()


@fixture()
async def greedy(gateway: Gateway, path: bytes) -> AsyncIterator[SlowReader]:
    """A client that asks three times without reading, and has more to read already than the kernel buffers."""
    gateway.dispatcher.steps = [[Delta(text=BIG * 200)], [Finished(3, 0, 200)]]
    slow = SlowReader()
    health = request(b"", path=b"/health", method=b"GET")
    await slow.ask(gateway, WHOLE, request(WHOLE, path=path), health, path=path)
    await gateway.dispatcher.happened.until(lambda: gateway.dispatcher.closed)
    await settle(100)
    yield slow
    slow.close()


@BOTH_WAYS
async def test_a_client_that_asks_on_without_reading_gets_its_next_answer_when_it_reads(
    gateway: Gateway, greedy: SlowReader
) -> None:
    assert len(gateway.dispatcher.asked) == 1
    browser = await greedy.read_on()
    for _ in range(2):
        assert said(await browser.answer()) == BIG * 200
    assert orjson.loads((await browser.answer()).body) == {"status": "ok"}
    browser.close()


@BOTH_WAYS
async def test_a_client_that_asks_on_without_reading_and_goes_away_is_not_answered_any_more(
    gateway: Gateway, greedy: SlowReader
) -> None:
    greedy.close()
    await eventually(lambda: not gateway.server._here and not gateway.server._elsewhere)
    await gateway.let_go()
    assert len(gateway.dispatcher.asked) == 1


@BOTH_WAYS
async def test_the_time_that_a_client_takes_to_send_its_body_is_not_counted(
    gateway: Gateway, browser: Browser, path: bytes
) -> None:
    go_on = asyncio.Event()
    gateway.dispatcher.steps = [go_on, *ANSWER]
    whole = request(WHOLE, path=path)
    await browser.send(whole[:-10])
    await eventually(lambda: gateway.exchanges.in_flight or [one for one in gateway.server._here if one._head])
    gateway.clock.advance(30.0)
    await browser.send(whole[-10:])
    await gateway.taken()
    gateway.clock.advance(2.0)
    go_on.set()
    assert said(await browser.answer()) == "Hello"
    page = await gateway.metrics()
    for name in ("ttft", "duration"):
        assert f'lb_gateway_{name}_seconds_sum{{model="m",route="chat"}} 2.0' in page


async def test_a_request_that_never_was_complete_has_no_duration(gateway: Gateway, browser: Browser) -> None:
    await browser.send(request(WHOLE, path=OTHER_WAY)[:-10])
    await eventually(lambda: gateway.exchanges.in_flight)
    gateway.clock.advance(30.0)
    browser.reset()
    await gateway.let_go()
    assert await gateway.counted(499, model="")
    assert "lb_gateway_duration_seconds_count{" not in await gateway.metrics()
