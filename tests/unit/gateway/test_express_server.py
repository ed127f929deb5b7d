"""Connections on which nothing comes or goes: closed when their time is over, and looked for while there are any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from gateway.config import GatewayConfig
from gateway.exchange import Exchanges
from gateway.express import Connection
from gateway.fleet import Fleet
from gateway.handlers import Handlers
from gateway.metrics import GatewayMetrics
from gateway.server import IDLE_S, LOOKS, STALLED_S, Server
from tests.fakes import ManualClock, settle
from tests.unit.gateway.test_express import Asked, FakeTransport, request

EXPRESS = request("a")
OTHER_WAY = EXPRESS.replace(b"completions HTTP", b"completions? HTTP")
"""The same, and enough to be read by aiohttp."""
BOTH_WAYS = pytest.mark.parametrize("whole", [EXPRESS, OTHER_WAY], ids=["express", "aiohttp"])


class Timer:
    """A timer of the event loop."""

    is_cancelled = False

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    """An event loop's time, which passes when a test says so; its turns are those of the real one."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.call_soon = asyncio.get_running_loop().call_soon

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, callback)
        self.timers.append(timer)
        return timer

    def elapse(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= end]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            if not timer.is_cancelled:
                timer.callback()
        self.now = end


class Fixed(FakeTransport, asyncio.Transport):
    """A connection that tells its protocol when it was closed, as asyncio does: not before its client has read all."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._protocol: Any = connection
        self._is_lost = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_writing(self) -> None:
        """So much waits for its client that no more should be written."""
        self._protocol.pause_writing()

    async def receive(self, data: bytes) -> None:
        """Its client has sent this."""
        self._protocol.data_received(data)
        await settle()

    def close(self) -> None:
        self.is_closed = True
        if not self.unread:
            self._lose()

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True
        self._lose()

    def read_all(self) -> None:
        """Its client has read everything."""
        self.unread = 0
        if self.is_closed:
            self._lose()

    def _lose(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._protocol.connection_lost(None)


class Scene:
    """A server on a time of its own."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        start: Any = self._start
        exchanges = Exchanges(GatewayConfig(), start, Fleet(lambda alive: None), GatewayMetrics(), ManualClock())
        server = Handlers(exchanges, Random(1)).server()
        assert isinstance(server, Server)
        self.server = server
        self.loop = FakeLoop()
        loop: Any = self.loop
        self.server.loop = loop

    def connect(self) -> tuple[Connection, Fixed]:
        connection = Connection(self.server)
        transport = Fixed(connection)
        connection.connection_made(transport)
        return connection, transport

    def _start(self, facts: Any, request: Any, take: Any, done: Any, observe: Any) -> Asked:
        self.asked.append(Asked(request.request_id, take, done))
        return self.asked[-1]


async def test_a_connection_without_a_request_is_closed_when_its_time_is_over_and_not_before() -> None:
    scene = Scene()
    _, transport = scene.connect()
    scene.loop.elapse(IDLE_S)
    assert not transport.is_closed
    scene.loop.elapse(IDLE_S / 5 + 1)
    assert transport.is_closed


async def test_the_time_counts_from_the_last_answer() -> None:
    scene = Scene()
    connection, transport = scene.connect()
    for _ in range(3):
        scene.loop.elapse(IDLE_S - 1)
        connection.data_received(request("a"))
        scene.asked[-1].answer()
    scene.loop.elapse(IDLE_S - 1)
    assert not transport.is_closed
    scene.loop.elapse(IDLE_S / 5 + 2)
    assert transport.is_closed


async def test_a_connection_with_a_request_is_left_alone_however_long_it_takes() -> None:
    scene = Scene()
    connection, transport = scene.connect()
    connection.data_received(request("a"))
    scene.loop.elapse(100 * IDLE_S)
    assert not transport.is_closed
    scene.asked[0].answer()
    scene.loop.elapse(IDLE_S - 1)
    assert not transport.is_closed
    scene.loop.elapse(IDLE_S)
    assert transport.is_closed


@BOTH_WAYS
async def test_a_body_may_take_any_time_as_long_as_something_of_it_comes(whole: bytes) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole[:-10])
    for at in range(len(whole) - 10, len(whole)):
        scene.loop.elapse(IDLE_S - 1)
        assert not transport.is_closed
        await transport.receive(whole[at : at + 1])
    scene.asked[0].answer()
    assert transport.written


@BOTH_WAYS
async def test_half_a_body_behind_which_nothing_comes_is_closed_when_its_time_is_over(whole: bytes) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole[:-10])
    scene.loop.elapse(IDLE_S / 2)
    await transport.receive(whole[-10:-5])
    scene.loop.elapse(IDLE_S)
    assert not transport.is_closed
    scene.loop.elapse(IDLE_S / LOOKS + 1)
    assert transport.is_closed
    assert not transport.is_aborted
    await settle()
    assert scene.asked == []
    assert scene.server.exchanges.in_flight == 0


@BOTH_WAYS
async def test_a_client_that_does_not_read_its_last_answer_is_cut_off_when_its_time_is_over(whole: bytes) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole)
    transport.unread = 1000
    scene.asked[0].answer()
    await settle()
    scene.loop.elapse(IDLE_S)
    assert not transport.is_closed
    scene.loop.elapse(2 * IDLE_S / LOOKS + 1)
    assert transport.is_aborted
    assert scene.loop.timers == []


@BOTH_WAYS
async def test_a_client_that_does_not_read_what_there_is_of_its_answer_is_cut_off_and_its_request_cancelled(
    whole: bytes,
) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole)
    for _ in range(3):
        transport.unread += 1000
        scene.loop.elapse(IDLE_S)
        assert not transport.is_closed
    scene.loop.elapse(2 * IDLE_S / LOOKS + 1)
    assert transport.is_aborted
    await settle()
    assert scene.asked[0].is_cancelled
    assert scene.server.exchanges.in_flight == 0


async def test_a_client_that_asks_on_without_reading_is_cut_off_however_much_it_sends() -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(OTHER_WAY)
    transport.unread = 1000
    transport.pause_writing()
    scene.asked[0].answer()
    for _ in range(20):
        await transport.receive(OTHER_WAY)
        assert len(scene.asked) == 1
        scene.loop.elapse(IDLE_S / LOOKS)
    assert transport.is_aborted
    await settle()
    assert scene.server.exchanges.in_flight == 0


@BOTH_WAYS
async def test_a_client_that_reads_its_last_answer_slowly_may_take_any_time(whole: bytes) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole)
    transport.unread = 1000
    scene.asked[0].answer()
    await settle()
    for _ in range(10):
        scene.loop.elapse(IDLE_S / 2)
        transport.unread -= 100
        assert not transport.is_closed
    scene.loop.elapse(2 * IDLE_S)
    assert not transport.is_aborted


async def test_nobody_looks_while_there_are_no_connections_and_again_when_there_are() -> None:
    scene = Scene()
    for _ in range(3):
        _, transport = scene.connect()
        scene.loop.elapse(3 * IDLE_S)
        assert transport.is_closed
        assert scene.loop.timers == []


async def test_many_connections_share_one_look() -> None:
    scene = Scene()
    transports = [scene.connect()[1] for _ in range(100)]
    assert len(scene.loop.timers) == 1
    scene.loop.elapse(IDLE_S / 2)
    assert len(scene.loop.timers) == 1
    late = scene.connect()[1]
    scene.loop.elapse(IDLE_S * 0.75)
    assert all(transport.is_closed for transport in transports)
    assert not late.is_closed


@BOTH_WAYS
async def test_a_server_that_stops_waits_for_what_runs_and_then_looks_no_more(whole: bytes) -> None:
    scene = Scene()
    _, idle = scene.connect()
    _, busy = scene.connect()
    await busy.receive(whole)
    stopping = asyncio.ensure_future(scene.server.shutdown())
    await settle()
    assert idle.is_closed
    scene.loop.elapse(100 * IDLE_S)
    await settle()
    assert not busy.is_closed
    assert not stopping.done()
    scene.asked[0].answer()
    await settle()
    assert busy.is_closed
    assert b"Connection: close\r\n" in busy.written
    assert stopping.done()
    assert all(timer.is_cancelled for timer in scene.loop.timers)


@BOTH_WAYS
@pytest.mark.parametrize("cut", [30, -10], ids=["head", "body"])
async def test_a_server_that_stops_waits_for_a_request_only_as_long_as_something_of_it_comes(
    whole: bytes, cut: int
) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole[:cut])
    stopping = asyncio.ensure_future(scene.server.shutdown())
    await settle()
    for at in range(len(whole[:cut]), len(whole[:cut]) + 5):
        scene.loop.elapse(STALLED_S - 1)
        assert not transport.is_closed
        await transport.receive(whole[at : at + 1])
    scene.loop.elapse(STALLED_S)
    assert not transport.is_closed
    scene.loop.elapse(STALLED_S / LOOKS + 1)
    assert transport.is_closed
    await settle()
    assert stopping.done()
    assert scene.asked == []


@BOTH_WAYS
@pytest.mark.parametrize("cut", [30, -10], ids=["head", "body"])
async def test_a_request_that_is_complete_after_the_server_began_to_stop_is_answered(whole: bytes, cut: int) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole[:cut])
    stopping = asyncio.ensure_future(scene.server.shutdown())
    await settle()
    scene.loop.elapse(STALLED_S - 1)
    await transport.receive(whole[cut:])
    scene.loop.elapse(IDLE_S)
    scene.asked[0].answer()
    assert b"Connection: close\r\n" in transport.written
    await settle()
    assert transport.is_closed
    assert stopping.done()


@pytest.mark.parametrize("is_complete", [False, True])
async def test_a_body_that_was_refused_before_it_was_complete_leaves_nothing_behind(is_complete: bool) -> None:
    scene = Scene()
    _, transport = scene.connect()
    refused = OTHER_WAY.replace(b"POST /v1/chat", b"POST /v1/nothing")
    await transport.receive(refused[:-10])
    assert transport.written.startswith(b"HTTP/1.1 404 ")
    if is_complete:
        await transport.receive(refused[-10:])
    stopping = asyncio.ensure_future(scene.server.shutdown())
    await settle()
    assert transport.is_closed is is_complete
    scene.loop.elapse(STALLED_S * (1 + 1 / LOOKS) + 1)
    await settle()
    assert transport.is_closed
    assert stopping.done()


async def test_a_body_that_was_refused_and_is_complete_after_the_server_began_to_stop_holds_up_nothing() -> None:
    scene = Scene()
    _, transport = scene.connect()
    refused = OTHER_WAY.replace(b"POST /v1/chat", b"POST /v1/nothing")
    await transport.receive(refused[:-10])
    stopping = asyncio.ensure_future(scene.server.shutdown())
    await settle()
    await transport.receive(refused[-10:])
    scene.loop.elapse(STALLED_S / LOOKS + 1)
    assert transport.is_closed
    await settle()
    assert stopping.done()


async def test_what_was_sent_ahead_is_not_begun_once_the_server_stops() -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(OTHER_WAY + OTHER_WAY)
    stopping = asyncio.ensure_future(scene.server.shutdown())
    await settle()
    scene.asked[0].answer()
    await settle()
    assert transport.is_closed
    assert stopping.done()
    assert len(scene.asked) == 1


@BOTH_WAYS
async def test_a_client_may_read_its_last_answer_as_long_as_the_server_waits(whole: bytes) -> None:
    scene = Scene()
    _, transport = scene.connect()
    await transport.receive(whole)
    transport.unread = 1000
    scene.asked[0].answer()
    await settle()
    stopping = asyncio.ensure_future(scene.server.shutdown())
    await settle()
    scene.loop.elapse(100 * IDLE_S)
    await settle()
    assert not transport.is_aborted
    assert not stopping.done()
    transport.read_all()
    await settle()
    assert stopping.done()
