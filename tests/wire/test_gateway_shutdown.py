"""How connections end when the gateway stops, and when nobody uses them: idle ones at once, busy ones when answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.server import IDLE_S
from lbcore.generation import Delta, Finished
from tests.fakes import settle
from tests.wire.browser import OTHER_WAY, PATH, STREAM, WHOLE, Browser, SlowReader, connect, request, said
from tests.wire.conftest import eventually, fixture, soon
from tests.wire.gateway_host import ANSWER, Gateway

BOTH_WAYS = pytest.mark.parametrize("path", [PATH, OTHER_WAY], ids=["express", "aiohttp"])
BOTH = pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
LONG_S = 60.0
"""Longer than a test's patience."""
SHORT_S = 0.05
LARGE = "x" * 30_000_000


def stop(gateway: Gateway, timeout_s: float) -> asyncio.Future[None]:
    return asyncio.ensure_future(gateway.server.shutdown(timeout_s))


def age(gateway: Gateway) -> None:
    """Has the time pass after which a connection on which nothing came is closed."""
    for one in gateway.server._here:
        if one.quiet_since is not None:
            one.quiet_since -= IDLE_S + 1
    for general in gateway.server._elsewhere:
        general._heard_at -= IDLE_S + 1
    gateway.server._close_quiet()


def has_half_a_request(gateway: Gateway) -> bool:
    """Whether something came on the only connection, and more must."""
    here = [one._head is not None for one in gateway.server._here]
    elsewhere = [one.quiet_since is not None for one in gateway.server._elsewhere]
    return any(here + elsewhere)


async def ended(browser: Browser) -> bool:
    """Whether the connection ends without another word, however it does."""
    try:
        return await browser.is_over()
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("asks_before", [0, 1, 3])
async def test_idle_connections_close_at_once(gateway: Gateway, browser: Browser, asks_before: int) -> None:
    for _ in range(asks_before):
        assert said(await browser.ask(WHOLE)) == "Hello"
    await eventually(lambda: gateway.server._here)
    await soon(stop(gateway, LONG_S))
    assert await browser.is_over()


async def test_an_idle_connection_that_aiohttp_has_closes_at_once(gateway: Gateway, browser: Browser) -> None:
    await browser.send(request(b"", path=b"/health", method=b"GET"))
    assert (await browser.answer()).status == 200
    await soon(stop(gateway, LONG_S))
    assert await browser.is_over()


@BOTH
async def test_a_busy_connection_is_answered_told_so_and_closed(
    gateway: Gateway, browser: Browser, body: bytes
) -> None:
    go_on = asyncio.Event()
    gateway.dispatcher.steps = [go_on, *ANSWER]
    await browser.send(request(body))
    await gateway.taken()
    stopping = stop(gateway, LONG_S)
    await settle()
    assert not stopping.done()
    go_on.set()
    answer = await browser.answer()
    assert said(answer) == "Hello"
    assert answer.headers["connection"] == "close"
    assert await browser.is_over()
    await soon(stopping)


async def test_a_stream_that_has_begun_is_completed_and_closed(gateway: Gateway, browser: Browser) -> None:
    go_on = asyncio.Event()
    gateway.dispatcher.steps = [ANSWER[0], go_on, ANSWER[1]]
    await browser.send(request(STREAM))
    await eventually(lambda: gateway.server.exchanges.in_flight)
    await gateway.taken()
    await settle()
    stopping = stop(gateway, LONG_S)
    await settle()
    assert not stopping.done()
    go_on.set()
    assert said(await browser.answer()) == "Hello"
    assert await browser.is_over()
    await soon(stopping)


async def test_idle_connections_do_not_wait_for_a_busy_one(gateway: Gateway, browser: Browser) -> None:
    go_on = asyncio.Event()
    gateway.dispatcher.steps = [go_on, *ANSWER]
    idle = await connect(gateway)
    await browser.send(request(WHOLE))
    await gateway.taken()
    await eventually(lambda: len(gateway.server._here) == 2)
    stopping = stop(gateway, LONG_S)
    assert await idle.is_over()
    assert not stopping.done()
    go_on.set()
    assert said(await browser.answer()) == "Hello"
    await soon(stopping)
    idle.close()


async def test_what_was_sent_ahead_is_not_begun_any_more(gateway: Gateway, browser: Browser) -> None:
    go_on = asyncio.Event()
    gateway.dispatcher.steps = [go_on, *ANSWER]
    await browser.send(request(WHOLE) + request(WHOLE))
    await gateway.taken()
    stopping = stop(gateway, LONG_S)
    await settle()
    go_on.set()
    assert said(await browser.answer()) == "Hello"
    assert await ended(browser)
    await soon(stopping)
    assert len(gateway.dispatcher.asked) == 1


@BOTH_WAYS
@BOTH
async def test_an_answer_that_never_ends_is_cut_when_the_time_is_over(
    gateway: Gateway, browser: Browser, body: bytes, path: bytes
) -> None:
    gateway.dispatcher.steps = [asyncio.Event()]
    await browser.send(request(body, path=path))
    await gateway.taken()
    await soon(stop(gateway, SHORT_S))
    assert await ended(browser)
    await gateway.let_go()
    assert not gateway.server._here
    assert not gateway.server._elsewhere


async def test_a_stream_that_never_ends_is_cut_when_the_time_is_over(gateway: Gateway, browser: Browser) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], asyncio.Event()]
    await browser.send(request(STREAM))
    await browser.hears(b"Hel")
    await soon(stop(gateway, SHORT_S))
    assert await ended(browser)
    await gateway.let_go()


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "while it stops"])
async def test_who_is_told_to_end_at_once_does_not_wait_for_anybody(
    gateway: Gateway, browser: Browser, is_late: bool
) -> None:
    gateway.dispatcher.steps = [ANSWER[0], asyncio.Event()]
    await browser.send(request(STREAM))
    await gateway.taken()
    if not is_late:
        gateway.server.cut()
    stopping = stop(gateway, LONG_S)
    if is_late:
        await settle()
        assert not stopping.done()
        gateway.server.cut()
    await soon(stopping)
    await gateway.let_go()


async def test_a_body_that_never_comes_completely_is_cut_when_the_time_is_over(
    gateway: Gateway, browser: Browser
) -> None:
    await browser.send(request(WHOLE)[:-10])
    await eventually(lambda: [one for one in gateway.server._here if one._head is not None])
    await soon(stop(gateway, SHORT_S))
    assert await ended(browser)
    assert gateway.dispatcher.asked == []
    assert not gateway.server._here


def halves(whole: bytes, end: int) -> tuple[bytes, bytes]:
    return whole[:end], whole[end:]


CHUNKED = request(b"%x\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE), b"Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    "parts",
    [
        halves(request(WHOLE), -10),
        halves(request(WHOLE), 30),
        halves(request(WHOLE, path=OTHER_WAY), -10),
        halves(request(STREAM, path=OTHER_WAY), -10),
        halves(CHUNKED, -20),
        (CHUNKED[:30], CHUNKED[30:-20], CHUNKED[-20:]),
    ],
    ids=["express", "head", "aiohttp", "aiohttp, stream", "chunked", "head and chunked"],
)
async def test_a_request_that_is_complete_in_time_is_answered_and_the_connection_closed(
    gateway: Gateway, browser: Browser, parts: tuple[bytes, ...]
) -> None:
    await browser.send(parts[0])
    await eventually(lambda: has_half_a_request(gateway))
    stopping = stop(gateway, LONG_S)
    for part in parts[1:]:
        await settle()
        assert not stopping.done()
        await browser.send(part)
    answer = await browser.answer()
    assert said(answer) == "Hello"
    assert answer.headers["connection"] == "close"
    assert await browser.is_over()
    await soon(stopping)


async def test_a_body_that_was_asked_for_is_answered_when_it_comes_in_time(gateway: Gateway, browser: Browser) -> None:
    whole = request(WHOLE, b"Expect: 100-continue")
    await browser.send(whole.removesuffix(WHOLE))
    await browser.hears(b"HTTP/1.1 100 Continue\r\n\r\n")
    stopping = stop(gateway, LONG_S)
    await settle()
    await browser.send(WHOLE)
    answer = await browser.answer()
    assert said(answer) == "Hello"
    assert answer.headers["connection"] == "close"
    assert await browser.is_over()
    await soon(stopping)


async def test_what_is_no_generation_is_told_that_its_connection_closes_too(gateway: Gateway, browser: Browser) -> None:
    await browser.send(request(WHOLE, path=b"/nothing")[:30])
    await eventually(lambda: has_half_a_request(gateway))
    stopping = stop(gateway, LONG_S)
    await settle()
    await browser.send(request(WHOLE, path=b"/nothing")[30:])
    answer = await browser.answer()
    assert answer.status == 404
    assert answer.headers["connection"] == "close"
    assert await browser.is_over()
    await soon(stopping)


@BOTH_WAYS
@pytest.mark.parametrize("end", [30, -10], ids=["head", "body"])
async def test_a_request_that_never_comes_completely_does_not_hold_up_the_end(
    gateway: Gateway, browser: Browser, path: bytes, end: int
) -> None:
    await browser.send(request(WHOLE, path=path)[:end])
    await eventually(lambda: has_half_a_request(gateway))
    stopping = stop(gateway, LONG_S)
    await settle()
    assert not stopping.done()
    age(gateway)
    await soon(stopping)
    assert await ended(browser)
    assert gateway.dispatcher.asked == []
    assert not gateway.exchanges.in_flight


async def test_who_connects_while_the_gateway_stops_is_closed(gateway: Gateway) -> None:
    gateway.server.pre_shutdown()
    late = await connect(gateway)
    assert await ended(late)
    assert gateway.dispatcher.asked == []
    late.close()


async def test_stopping_twice_is_stopping_once(gateway: Gateway, browser: Browser) -> None:
    assert said(await browser.ask(WHOLE)) == "Hello"
    await soon(asyncio.gather(stop(gateway, LONG_S), stop(gateway, LONG_S)))
    assert await browser.is_over()
    await soon(stop(gateway, LONG_S))


@fixture()
async def slow(gateway: Gateway, path: bytes) -> AsyncIterator[SlowReader]:
    """A client whose answer is written, and so large that most of it waits at the gateway until it reads."""
    gateway.dispatcher.steps = [[Delta(text=LARGE), Finished(3, 0, 1)]]
    slow = SlowReader()
    await slow.ask(gateway, WHOLE, path=path)
    await gateway.dispatcher.happened.until(lambda: gateway.dispatcher.closed)
    await gateway.let_go()
    await settle()
    yield slow
    slow.close()


@BOTH_WAYS
async def test_an_answer_that_was_written_is_sent_to_its_last_byte(gateway: Gateway, slow: SlowReader) -> None:
    stopping = stop(gateway, LONG_S)
    await settle()
    assert not stopping.done()
    browser = await slow.read_on()
    assert said(await browser.answer()) == LARGE
    assert await browser.is_over()
    await soon(stopping)
    browser.close()


@BOTH_WAYS
async def test_a_client_that_does_not_read_its_answer_does_not_hold_up_the_end_for_ever(
    gateway: Gateway, slow: SlowReader
) -> None:
    await soon(stop(gateway, SHORT_S))
    await eventually(lambda: not gateway.server._here and not gateway.server._elsewhere)
    browser = await slow.read_on()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await browser.answer()
    browser.close()


async def test_connections_that_nobody_uses_are_closed_after_a_while_and_busy_ones_are_not(
    gateway: Gateway,
) -> None:
    go_on = asyncio.Event()
    gateway.dispatcher.steps = [go_on, *ANSWER]
    fresh, used, busy = [await connect(gateway) for _ in range(3)]
    await busy.send(request(WHOLE))
    await gateway.taken()
    await used.send(request(b"{"))
    assert (await used.answer()).status == 400
    await eventually(lambda: len(gateway.server._here) == 3)
    age(gateway)
    assert await fresh.is_over()
    assert await used.is_over()
    go_on.set()
    assert said(await busy.answer()) == "Hello"
    age(gateway)
    assert await busy.is_over()
    assert not gateway.server._here
    for one in (fresh, used, busy):
        one.close()
