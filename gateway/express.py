"""The quick way in: the plain requests that nearly all clients send, read without a general HTTP server.

A connection begins here. As long as it brings `POST /v1/chat/completions` or `/v1/completions` under HTTP/1.1, with its
whole head in one read, a Content-Length and nothing unusual, the request is answered from here. With the first request
that is anything else, the connection is given to aiohttp, which speaks all of HTTP, with every byte of that request,
and stays there. So what is read here is read strictly, and there is no HTTP of our own to be wrong about the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from math import inf
from random import Random
from typing import TYPE_CHECKING

from gateway.exchange import Exchange
from gateway.terms import Terms, printable, tenant_of
from lbcore.generation import Dialect

if TYPE_CHECKING:
    from gateway.server import Server

MAX_HEAD_BYTES = 16 * 1024
MAX_WAITING_BYTES = 256 * 1024
"""Of requests that a client sent before it had the answer to its last; beyond, it is not read for a while."""

_START = re.compile(rb"POST /v1/(chat/completions|completions) HTTP/1\.1\r\n")
_FIELDS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)++")
_WANTED = re.compile(
    rb"\n(host|content-length|x-request-id|x-session-id|x-tenant-id|authorization|connection|proxy-connection"
    rb"|transfer-encoding|content-encoding|expect|upgrade|x-priority|x-slo-ttft-ms|x-slo-tpot-ms|x-request-timeout-ms"
    rb"|x-lb-explain|x-lb-continue)"
    rb":[ \t]*+([^\r]*+)",
    re.IGNORECASE,
)
_DIALECTS = {b"chat/completions": Dialect.CHAT, b"completions": Dialect.COMPLETION}
_LENGTH = re.compile(rb"[0-9]{1,10}")
_NO_TERMS = Terms()


class Head:
    """What matters of a request's head."""

    __slots__ = ("dialect", "length", "request_id", "size", "terms")

    def __init__(self, dialect: Dialect, size: int, length: int, request_id: str, terms: Terms) -> None:
        self.dialect = dialect
        self.size = size
        """Bytes of the head itself."""
        self.length = length
        """Bytes of the body."""
        self.request_id = request_id
        """The client's own, or empty."""
        self.terms = terms


def read_head(data: bytes) -> Head | None:
    """The head that the data begins with, or None when it is not a plain one, or not complete."""
    start = _START.match(data)
    if start is None:
        return None
    end = data.find(b"\r\n\r\n", start.end() - 2, MAX_HEAD_BYTES)
    if end < 0 or _FIELDS.fullmatch(data, start.end(), end + 2) is None:
        return None
    found: dict[bytes, bytes] = {}
    for name, value in _WANTED.findall(data, start.end() - 1, end):
        name = name.lower()
        if name in found:
            return None
        found[name] = value
    length = found.pop(b"content-length", None)
    if length is None or _LENGTH.fullmatch(length) is None or found.pop(b"host", None) is None:
        return None
    if found.pop(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    request_id, terms = "", _NO_TERMS
    if found:
        request_id = printable(_text(found, b"x-request-id"))
        session_id = printable(_text(found, b"x-session-id"))
        tenant = tenant_of(_text(found, b"x-tenant-id"), _text(found, b"authorization"))
        if found:
            # Whatever else was looked for is for aiohttp.
            return None
        terms = Terms(session_id, tenant)
    return Head(_DIALECTS[start[1]], end + 4, int(length), request_id, terms)


def _text(found: dict[bytes, bytes], name: bytes) -> str:
    value = found.pop(name, None)
    return "" if value is None else value.rstrip(b" \t").decode("latin-1")


def new_request_id(rng: Random) -> str:
    """For a request whose client gave none."""
    return f"{rng.getrandbits(128):032x}"


class Unread:
    """What waits for a client to take it, as it was when somebody looked last."""

    __slots__ = ("since", "size")

    def __init__(self) -> None:
        self.size = 0
        """In bytes."""
        self.since = -inf
        """When the size last changed."""

    def look(self, transport: asyncio.Transport, now: float) -> None:
        """Takes notice of the present size."""
        size = transport.get_write_buffer_size()
        if size != self.size:
            self.size = size
            self.since = now


class Connection(asyncio.Protocol):
    """One client's connection, and the `Peer` of its requests.

    A client that closes only its own direction behind a request is taken for one that went away: the two look alike
    from here, and to go on generating for nobody costs more than such clients are worth.
    """

    is_http_1_1 = True

    def __init__(self, server: Server) -> None:
        self._server = server
        self._exchange: Exchange | None = None
        self._head: Head | None = None
        self._body: list[bytes | memoryview] = []
        self._missing = 0
        self._waiting = b""
        self._is_reading = True
        self._go_on: Callable[[], None] | None = None
        self._is_full = False
        self._is_held = False
        self.transport: asyncio.Transport
        self.keeps_alive = True
        self.quiet_since: float | None = None
        """Since when the client has sent nothing while it was its turn; None while it waits for an answer, and when
        the connection is to close."""
        self.unread = Unread()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.quiet_since = self._server.loop.time()
        self._server.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.left(self)
        self._go_on = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._body.append(data)
            self._missing -= len(data)
            if self._missing <= 0:
                self._take(self._head, b"".join(self._body))
            else:
                self.quiet_since = self._server.loop.time()
        elif self._exchange is not None or self._waiting or self._is_held:
            self._wait(data)
        else:
            self._read(data)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        go_on, self._go_on = self._go_on, None
        if go_on is not None:
            go_on()

    def when_drained(self, go_on: Callable[[], None]) -> None:
        """See `Peer`."""
        if self._is_full:
            self._go_on = go_on
        else:
            self._server.loop.call_soon(go_on)

    def stop(self) -> None:
        """Takes no further request; closes when the present one is answered."""
        self.keeps_alive = False
        if self._exchange is None and self._head is None:
            # A last answer that is still on its way has the time of the whole server.
            self.quiet_since = None
            self.transport.close()

    def _wait(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) > MAX_WAITING_BYTES and self._is_reading:
            self._is_reading = False
            self.transport.pause_reading()

    def _read(self, data: bytes) -> None:
        head = read_head(data)
        if head is None or head.length > self._server.max_body_bytes:
            self._hand_over(data)
            return
        if len(data) - head.size < head.length:
            self._head = head
            self._body = [memoryview(data)[head.size :]]
            self._missing = head.length - (len(data) - head.size)
            self.quiet_since = self._server.loop.time()
            return
        self._take(head, data[head.size :])

    def _take(self, head: Head, data: bytes) -> None:
        """Begins with a request; what comes behind its body is the next one's."""
        self._head = None
        self._body = []
        self.quiet_since = None
        server = self._server
        request_id = head.request_id or new_request_id(server.rng)
        exchange = Exchange(server.exchanges, self, head.dialect, request_id, self._over)
        self._exchange = exchange
        if len(data) > head.length:
            self._wait(data[head.length :])
            data = data[: head.length]
        exchange.begin(data, head.terms)

    def _over(self) -> None:
        if self._exchange is None:
            # The client went away.
            return
        self._exchange = None
        if not self.keeps_alive:
            self.transport.close()
            return
        self.quiet_since = self._server.loop.time()
        if self._is_full:
            # A client that asks on and on without reading would have all its answers stored here.
            self._is_held = True
            self._go_on = self._next
        elif self._waiting:
            self._server.loop.call_soon(self._next)

    def _next(self) -> None:
        self._is_held = False
        if self._exchange is not None or self.transport.is_closing():
            return
        if not self._is_reading:
            self._is_reading = True
            self.transport.resume_reading()
        if self._waiting:
            data, self._waiting = self._waiting, b""
            self._read(data)

    def _hand_over(self, data: bytes) -> None:
        handler = self._server.general()
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        self._server.left(self)
        if self._is_full:
            # It has not heard that it must not write, and would be told that it may.
            handler.pause_writing()
        handler.data_received(data)
