"""How connections end when the gateway stops, and when nobody uses them: idle ones at once, busy ones when answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway import express
from gateway.express import Server
from lbcore.generation import Delta
from tests.fakes import settle
from tests.wire.browser import STREAM, WHOLE, Browser, connect, request, said
from tests.wire.conftest import eventually, fixture, soon
from tests.wire.gateway_host import ANSWER, Gateway

BOTH = pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
LONG_S = 60.0
"""Longer than a test's patience."""
SHORT_S = 0.05


@fixture()
async def gateway() -> AsyncIterator[Gateway]:
    async with Gateway() as gateway:
        gateway.serves("m")
        yield gateway


@fixture()
async def browser(gateway: Gateway) -> AsyncIterator[Browser]:
    browser = await connect(gateway)
    yield browser
    browser.close()


def server_of(gateway: Gateway) -> Server:
    server = gateway.runner.server
    assert isinstance(server, Server)
    return server


def stop(gateway: Gateway, timeout_s: float) -> asyncio.Future[None]:
    return asyncio.ensure_future(server_of(gateway).shutdown(timeout_s))


async def ended(browser: Browser) -> bool:
    """Whether the connection ends without another word, however it does."""
    try:
        return await browser.is_over()
    except ConnectionResetError:
        return True


async def taken(gateway: Gateway, count: int = 1) -> None:
    """Returns once so many requests have reached the dispatcher."""
    await gateway.dispatcher.happened.until(lambda: len(gateway.dispatcher.asked) == count)


@pytest.mark.parametrize("asks_before", [0, 1, 3])
async def test_idle_connections_close_at_once(gateway: Gateway, browser: Browser, asks_before: int) -> None:
    for _ in range(asks_before):
        assert said(await browser.ask(WHOLE)) == "Hello"
    await eventually(lambda: server_of(gateway)._here)
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
    await taken(gateway)
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
    await eventually(lambda: server_of(gateway).exchanges.in_flight)
    await taken(gateway)
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
    await taken(gateway)
    await eventually(lambda: len(server_of(gateway)._here) == 2)
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
    await taken(gateway)
    stopping = stop(gateway, LONG_S)
    await settle()
    go_on.set()
    assert said(await browser.answer()) == "Hello"
    assert await ended(browser)
    await soon(stopping)
    assert len(gateway.dispatcher.asked) == 1


@BOTH
async def test_an_answer_that_never_ends_is_cut_when_the_time_is_over(
    gateway: Gateway, browser: Browser, body: bytes
) -> None:
    gateway.dispatcher.steps = [asyncio.Event()]
    await browser.send(request(body))
    await taken(gateway)
    await soon(stop(gateway, SHORT_S))
    assert await ended(browser)
    await gateway.let_go()
    assert not server_of(gateway)._here


async def test_a_stream_that_never_ends_is_cut_when_the_time_is_over(gateway: Gateway, browser: Browser) -> None:
    gateway.dispatcher.steps = [[Delta(text="Hel")], asyncio.Event()]
    await browser.send(request(STREAM))
    while b"Hel" not in await browser.read_any():
        pass
    await soon(stop(gateway, SHORT_S))
    assert await ended(browser)
    await gateway.let_go()


async def test_a_body_that_never_comes_completely_is_cut_when_the_time_is_over(
    gateway: Gateway, browser: Browser
) -> None:
    await browser.send(request(WHOLE)[:-10])
    await eventually(lambda: [one for one in server_of(gateway)._here if one.idle_since is None])
    await soon(stop(gateway, SHORT_S))
    assert await ended(browser)
    assert gateway.dispatcher.asked == []
    assert not server_of(gateway)._here


async def test_a_body_that_comes_in_time_is_answered_and_the_connection_closed(
    gateway: Gateway, browser: Browser
) -> None:
    whole = request(WHOLE)
    await browser.send(whole[:-10])
    await eventually(lambda: [one for one in server_of(gateway)._here if one.idle_since is None])
    stopping = stop(gateway, LONG_S)
    await settle()
    assert not stopping.done()
    await browser.send(whole[-10:])
    answer = await browser.answer()
    assert said(answer) == "Hello"
    assert answer.headers["connection"] == "close"
    assert await browser.is_over()
    await soon(stopping)


async def test_a_head_that_never_comes_completely_does_not_hold_up_the_end(gateway: Gateway, browser: Browser) -> None:
    await browser.send(request(WHOLE)[:30])
    await eventually(lambda: not server_of(gateway)._here and server_of(gateway).connections)
    await soon(stop(gateway, LONG_S))
    assert await ended(browser)


async def test_who_connects_while_the_gateway_stops_is_closed(gateway: Gateway) -> None:
    server_of(gateway).pre_shutdown()
    late = await connect(gateway)
    assert await ended(late)
    assert gateway.dispatcher.asked == []
    late.close()


async def test_stopping_twice_is_stopping_once(gateway: Gateway, browser: Browser) -> None:
    assert said(await browser.ask(WHOLE)) == "Hello"
    await soon(asyncio.gather(stop(gateway, LONG_S), stop(gateway, LONG_S)))
    assert await browser.is_over()
    await soon(stop(gateway, LONG_S))


async def test_a_client_that_does_not_read_its_answer_does_not_hold_up_the_end_for_ever(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [[Delta(text="x" * 30_000_000)], ANSWER[1]]
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(request(WHOLE))
    await gateway.dispatcher.happened.until(lambda: gateway.dispatcher.closed)
    await settle()
    await soon(stop(gateway, SHORT_S))
    assert not server_of(gateway)._here
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await soon(reader.readexactly(30_000_000))
    writer.close()


async def test_connections_that_nobody_uses_are_closed_after_a_while_and_busy_ones_are_not(
    gateway: Gateway, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(express, "IDLE_S", SHORT_S)
    go_on = asyncio.Event()
    gateway.dispatcher.steps = [go_on, *ANSWER]
    # The sweep was planned with the first connection: these are the first that see the shorter time.
    browser.close()
    await eventually(lambda: not server_of(gateway)._here)
    sweep, server_of(gateway)._sweep = server_of(gateway)._sweep, None
    if sweep is not None:
        sweep.cancel()
    fresh, used, busy = [await connect(gateway) for _ in range(3)]
    await busy.send(request(WHOLE))
    await taken(gateway)
    await used.send(request(b"{"))
    assert (await used.answer()).status == 400
    assert await fresh.is_over()
    assert await used.is_over()
    go_on.set()
    assert said(await busy.answer()) == "Hello"
    assert await busy.is_over()
    assert not server_of(gateway)._here
    for one in (fresh, used, busy):
        one.close()
