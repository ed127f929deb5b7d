"""The quick way in: what is plain is read strictly, everything else is left to aiohttp, and the order is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import GatewayConfig
from gateway.exchange import Exchanges
from gateway.express import MAX_HEAD_BYTES, MAX_WAITING_BYTES, Connection, read_head
from gateway.fleet import Fleet
from gateway.metrics import GatewayMetrics
from gateway.server import Server
from gateway.terms import Terms
from lbcore.dispatch import Attempt, End
from lbcore.flow import Take
from lbcore.generation import Delta, Dialect, Finished, GenerationRequest
from lbcore.types import RouteFacts
from tests.fakes import ManualClock, settle

BODY = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'
END = Finished(3, 0, 1)


def head(*lines: bytes, start: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    return b"\r\n".join((start, *lines, b"", b""))


def request(request_id: str, body: bytes = BODY) -> bytes:
    return head(b"Host: x", b"X-Request-ID: " + request_id.encode(), b"Content-Length: %d" % len(body)) + body


def test_a_plain_head_is_read() -> None:
    data = head(
        b"Host: x", b"content-LENGTH:  57", b"X-Request-ID: mine ", b"X-Session-ID: s", b"Connection: Keep-Alive"
    )
    read = read_head(data + b"{")
    assert read is not None
    assert (read.dialect, read.size, read.length) == (Dialect.CHAT, len(data), 57)
    assert (read.request_id, read.terms) == ("mine", Terms(session_id="s"))


def test_the_other_path_is_the_other_dialect() -> None:
    read = read_head(head(b"Host: x", b"Content-Length: 0", start=b"POST /v1/completions HTTP/1.1"))
    assert read is not None
    assert read.dialect is Dialect.COMPLETION


@pytest.mark.parametrize(
    "start",
    [
        b"POST /v1/chat/completions HTTP/1.0",
        b"POST /v1/chat/completions HTTP/2.0",
        b"POST /v1/chat/completions?x HTTP/1.1",
        b"POST /v1/chat/completions/ HTTP/1.1",
        b"POST  /v1/chat/completions HTTP/1.1",
        b"GET /v1/chat/completions HTTP/1.1",
        b"POST /v1/embeddings HTTP/1.1",
        b"post /v1/chat/completions HTTP/1.1",
    ],
)
def test_what_begins_otherwise_is_left_alone(start: bytes) -> None:
    assert read_head(head(b"Content-Length: 5", start=start)) is None


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (b"Host: x",),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: +5",),
        (b"Content-Length: -5",),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 5_0",),
        (b"Content-Length: \xb2",),
        (b"Content-Length:",),
        (b"Content-Length: 99999999999",),
        (b"Content-Length : 5",),
        (b" Content-Length: 5",),
        (b"Host: x", b" folded", b"Content-Length: 5"),
        (b"Host: x\nContent-Length: 5",),
        (b"Host: x\rY: y", b"Content-Length: 5"),
        (b"Host: \x00", b"Content-Length: 5"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Content-Length: 5", b"TRANSFER-ENCODING: identity"),
        (b"Content-Length: 5", b"Content-Encoding: gzip"),
        (b"Content-Length: 5", b"Expect: 100-continue"),
        (b"Content-Length: 5", b"Connection: close"),
        (b"Content-Length: 5", b"Connection: keep-alive, upgrade"),
        (b"Content-Length: 5", b"Upgrade: h2c"),
        (b"Content-Length: 5", b"X-Priority: 1"),
        (b"Content-Length: 5", b"x-slo-ttft-ms: 100"),
        (b"Content-Length: 5", b"X-SLO-TPOT-MS: 100"),
        (b"Content-Length: 5", b"X-Request-Timeout-MS: 100"),
        (b"Content-Length: 5", b"no colon"),
        (b"Content-Length: 5", b": no name"),
        (b"Content-Length: 5", b"X: " + b"x" * MAX_HEAD_BYTES),
    ],
)
def test_a_head_with_anything_unusual_is_left_alone(lines: tuple[bytes, ...]) -> None:
    assert read_head(head(*lines)) is None


@given(st.data())
def test_a_head_that_is_not_complete_is_left_alone(data: st.DataObject) -> None:
    whole = head(b"Host: x", b"Content-Length: 57", b"X-Request-ID: mine")
    assert read_head(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_left_alone(tail: bytes) -> None:
    read_head(b"POST /v1/chat/completions HTTP/1.1\r\n" + tail)
    read_head(head(b"Content-Length: 5")[:-2] + tail + b"\r\n\r\n")


class FakeTransport:
    """A connection whose bytes go nowhere."""

    def __init__(self) -> None:
        self.written = b""
        self.unread = 0
        """Bytes that the client has not taken."""
        self.is_reading = True
        self.is_closed = False
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class Asked:
    """One request that reached the dispatcher, answered when a test says so."""

    first_token_at: float | None = None

    is_cancelled = False
    is_answered = False

    def __init__(self, request_id: str, take: Take, done: Callable[[End], None], body: bytes = b"") -> None:
        self.request_id = request_id
        self.body = body
        self._take = take
        self._done = done

    def answer(self) -> None:
        flow: Any = None
        self.is_answered = True
        self._take([Delta(text=self.request_id), END], flow)
        self._done(END)

    def cancel(self) -> None:
        self.is_cancelled = True


class Scene:
    """A connection, and what came through it."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        fleet = Fleet(lambda alive: None)
        start: Any = self._start
        exchanges = Exchanges(GatewayConfig(), start, fleet, GatewayMetrics(), ManualClock())
        self.connection = Connection(Server(None, exchanges, Random(1)))
        self.transport = FakeTransport()
        transport: Any = self.transport
        # The connection insists on one of asyncio's.
        self.connection.transport = transport

    @property
    def ids(self) -> list[str]:
        return [asked.request_id for asked in self.asked]

    def _start(
        self,
        facts: RouteFacts,
        request: GenerationRequest,
        take: Take,
        done: Callable[[End], None],
        observe: Callable[[Attempt], None],
    ) -> Asked:
        asked = Asked(request.request_id, take, done, request.body)
        self.asked.append(asked)
        return asked


async def test_requests_that_come_at_once_are_asked_one_after_another() -> None:
    scene = Scene()
    scene.connection.data_received(request("a") + request("b") + request("c"))
    for number, upto in enumerate("abc", start=1):
        assert len(scene.ids) == number
        scene.asked[-1].answer()
        await settle()
        assert upto in scene.ids
    assert scene.ids == ["a", "b", "c"]


async def test_a_request_may_come_in_any_pieces_behind_another() -> None:
    scene = Scene()
    whole = request("a") + request("b")
    cut = len(request("a")) - 10
    scene.connection.data_received(whole[:cut])
    assert scene.ids == []
    for at in range(cut, len(whole)):
        scene.connection.data_received(whole[at : at + 1])
    assert scene.ids == ["a"]
    scene.asked[0].answer()
    await settle()
    assert scene.ids == ["a", "b"]


async def test_what_comes_in_the_turn_of_an_answer_does_not_overtake_what_waits() -> None:
    scene = Scene()
    scene.connection.data_received(request("a") + request("b"))
    scene.asked[0].answer()
    scene.connection.data_received(request("c"))
    for _ in range(3):
        await settle()
        scene.asked[-1].answer()
    assert scene.ids == ["a", "b", "c"]
    texts = [scene.transport.written.index(b'"content":"%b"' % name) for name in (b"a", b"b", b"c")]
    assert texts == sorted(texts)


async def test_half_a_request_that_waits_is_completed_by_what_comes_in_the_turn_of_an_answer() -> None:
    scene = Scene()
    second = request("b")
    scene.connection.data_received(request("a") + second[:-10])
    scene.asked[0].answer()
    scene.connection.data_received(second[-10:])
    await settle()
    assert scene.ids == ["a", "b"]


async def test_a_client_that_sends_much_ahead_is_not_read_until_its_turn() -> None:
    scene = Scene()
    scene.connection.data_received(request("a"))
    body = BODY[:-1] + b" " * MAX_WAITING_BYTES + b"}"
    scene.connection.data_received(request("b", body))
    assert not scene.transport.is_reading
    scene.asked[0].answer()
    await settle()
    assert scene.ids == ["a", "b"]
    assert scene.transport.is_reading


async def test_of_all_that_is_sent_ahead_little_waits_here_and_everything_is_asked_in_its_turn() -> None:
    scene = Scene()
    body = BODY[:-1] + b" " * 20_000 + b"}"
    names = [f"r{number}" for number in range(100)]
    ahead = iter(names)
    for name in ahead:
        scene.connection.data_received(request(name, body))
        if not scene.transport.is_reading:
            break
    pauses = 1
    assert MAX_WAITING_BYTES < len(scene.connection._waiting) < MAX_WAITING_BYTES + len(request("r99", body))
    while len(scene.asked) < len(names):
        scene.asked[-1].answer()
        await settle(2)
        while scene.transport.is_reading and (name := next(ahead, "")):
            scene.connection.data_received(request(name, body))
            pauses += not scene.transport.is_reading
        assert len(scene.connection._waiting) < MAX_WAITING_BYTES + len(request("r99", body))
    assert scene.ids == names
    assert pauses > 10


async def test_a_client_that_does_not_read_its_answer_is_asked_for_the_next_when_it_has() -> None:
    scene = Scene()
    scene.connection.data_received(request("a") + request("b"))
    scene.connection.pause_writing()
    scene.asked[0].answer()
    await settle()
    scene.connection.data_received(request("c"))
    await settle()
    assert scene.ids == ["a"]
    scene.connection.resume_writing()
    assert scene.ids == ["a", "b"]
    scene.asked[1].answer()
    await settle()
    assert scene.ids == ["a", "b", "c"]


async def test_a_client_that_asks_on_and_on_without_reading_is_not_read_either() -> None:
    scene = Scene()
    scene.connection.data_received(request("a"))
    scene.connection.pause_writing()
    scene.asked[0].answer()
    body = BODY[:-1] + b" " * MAX_WAITING_BYTES + b"}"
    scene.connection.data_received(request("b", body))
    await settle()
    assert scene.ids == ["a"]
    assert not scene.transport.is_reading
    scene.connection.resume_writing()
    assert scene.ids == ["a", "b"]
    assert scene.transport.is_reading


async def test_a_client_that_has_read_its_answer_before_it_asks_again_is_served_at_once() -> None:
    scene = Scene()
    scene.connection.data_received(request("a"))
    scene.connection.pause_writing()
    scene.asked[0].answer()
    scene.connection.resume_writing()
    scene.connection.data_received(request("b"))
    assert scene.ids == ["a", "b"]


async def test_what_waits_for_a_client_to_read_is_forgotten_when_it_goes_away_or_the_server_stops() -> None:
    for is_stopped in (False, True):
        scene = Scene()
        scene.connection.data_received(request("a") + request("b"))
        scene.connection.pause_writing()
        scene.asked[0].answer()
        if is_stopped:
            scene.connection.stop()
            assert scene.transport.is_closed
            scene.connection.resume_writing()
        else:
            scene.transport.is_closed = True
            scene.connection.connection_lost(None)
        await settle()
        assert scene.ids == ["a"]


async def test_a_client_that_goes_away_cancels_its_request_and_what_waits_is_forgotten() -> None:
    scene = Scene()
    scene.connection.data_received(request("a") + request("b"))
    scene.transport.is_closed = True
    scene.connection.connection_lost(None)
    await settle()
    assert scene.ids == ["a"]
    assert scene.asked[0].is_cancelled


async def test_a_connection_that_is_stopped_ends_with_its_present_answer() -> None:
    scene = Scene()
    scene.connection.data_received(request("a") + request("b"))
    scene.connection.stop()
    assert not scene.transport.is_closed
    scene.asked[0].answer()
    await settle()
    assert scene.transport.is_closed
    assert scene.ids == ["a"]
    assert b"Connection: close\r\n" in scene.transport.written


async def test_an_idle_connection_is_stopped_at_once() -> None:
    scene = Scene()
    scene.connection.stop()
    assert scene.transport.is_closed
    await asyncio.sleep(0)


@given(st.data())
def test_however_the_bytes_are_cut_every_request_is_asked_once_in_its_turn(data: st.DataObject) -> None:
    asyncio.run(_play(data))


async def _play(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 50, 5000]), min_size=1, max_size=5))
    bodies = [BODY[:-1] + b" " * size + b"}" for size in sizes]
    whole = b"".join(request(f"r{number}", body) for number, body in enumerate(bodies))
    heads = _starts(bodies)
    # A head comes in one piece, as it does from nearly all clients: others are handed over.
    cuts = data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=6))
    first_head = whole.index(b"\r\n\r\n") + 4
    cuts = sorted({cut for cut in cuts if cut >= first_head and not any(at < cut < at + 200 for at in heads)})
    scene = Scene()
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        scene.connection.data_received(whole[start:end])
        if data.draw(st.booleans()) and scene.asked and not scene.asked[-1].is_answered:
            scene.asked[-1].answer()
        if data.draw(st.booleans()):
            await settle(2)
    for _ in bodies:
        await settle(2)
        if not scene.asked[-1].is_answered:
            scene.asked[-1].answer()
    assert scene.ids == [f"r{number}" for number in range(len(bodies))]
    assert [asked.body for asked in scene.asked] == bodies
    assert scene.transport.written.count(b"HTTP/1.1 200 OK\r\n") == len(bodies)


def _starts(bodies: list[bytes]) -> list[int]:
    """Where each request begins among all of them."""
    starts = [0]
    for number, body in enumerate(bodies[:-1]):
        starts.append(starts[-1] + len(request(f"r{number}", body)))
    return starts
