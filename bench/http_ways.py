"""What reading a request and sending an answer cost in the HTTP servers the gateway could use, without sockets.

python -m bench.http_ways

CPU microseconds per request, the best of several rounds that take turns. Every way reads the same chat request of 300
characters and sends the same answer; none parses JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.express import read_head

ROUNDS = 9
REQUESTS = 2000

BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"lorem ipsum dolor " * 14 + b'"}],"max_tokens":1}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\nAuthorization: Bearer none\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
ANSWER = b"x" * 250
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-ID: %b\r\nContent-Length: %d\r\n\r\n"


class Transport(asyncio.Transport):
    """Counts what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: Any) -> None:
        self.writes += 1

    def writelines(self, data: Any) -> None:
        self.writes += 1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing is read from it."""

    def resume_reading(self) -> None:
        """Nothing is read from it."""


class Sent(web.StreamResponse):
    """An answer that was written past aiohttp."""

    def __init__(self) -> None:
        super().__init__()
        self._keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing to do."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing to do."""


class Express(asyncio.Protocol):
    """Reads as the gateway's quick way does, and answers at once."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        head = read_head(data)
        assert head is not None
        body = data[head.size :]
        assert len(body) == head.length
        self.transport.write(HEAD % (b"0123456789abcdef", len(ANSWER)) + ANSWER)


async def _response(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(body=ANSWER, headers={"Content-Type": "application/json", "X-Request-ID": "0123456789abcdef"})


_SENT: list[Sent] = []


async def _past(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    assert request.transport is not None
    request.transport.write(HEAD % (b"0123456789abcdef", len(ANSWER)) + ANSWER)
    return _SENT[0]


async def _cost_us(factory: Callable[[], Any]) -> float:
    protocol, transport = factory(), Transport()
    protocol.connection_made(transport)
    await asyncio.sleep(0)
    began = time.process_time()
    for _ in range(REQUESTS):
        before = transport.writes
        protocol.data_received(REQUEST)
        while transport.writes == before:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return (time.process_time() - began) / REQUESTS * 1e6


async def main() -> None:
    _SENT.append(Sent())
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _response)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    ways: dict[str, Callable[[], Any]] = {
        "aiohttp application, its response": runner.server,  # type: ignore[dict-item]
        "aiohttp low-level server, its response": web.Server(_response, access_log=None),
        "aiohttp low-level server, written past it": web.Server(_past, access_log=None),
        "the gateway's quick way": Express,
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, factory in ways.items():
            best[name] = min(best[name], await _cost_us(factory))
    for name, cost_us in best.items():
        print(f"{name:45} {cost_us:6.1f} us")


if __name__ == "__main__":
    asyncio.run(main())
