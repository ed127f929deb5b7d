"""What goes back to a client, as bytes: heads of answers, pieces of streams, and the connection they are written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from lbcore.clock import unix_time_s

HIGH_WATER_BYTES = 64 * 1024
"""What may wait for one client before the events of its answer are kept back: asyncio pauses writers beyond it, too."""

STREAM = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx and its like collect an answer before passing it on unless told otherwise.
    "X-Accel-Buffering": "no",
}
JSON = {"Content-Type": "application/json"}

LAST_PIECE = b"0\r\n\r\n"


class Transport(Protocol):
    """What of asyncio's transports is needed."""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool: ...

    def get_write_buffer_size(self) -> int: ...


class Peer(Protocol):
    """A client's connection while one of its requests is answered."""

    is_http_1_1: bool
    keeps_alive: bool
    """Whether the connection stays open for a next request."""

    @property
    def transport(self) -> Transport:
        """Where to write."""

    def when_drained(self, go_on: Callable[[], None]) -> None:
        """Calls back when the client has taken what waits for it; never if it goes away before."""


class Heads:
    """Writes the heads of answers; what all have in common is made once."""

    def __init__(self) -> None:
        self._second = -1
        self._date = b""
        self._fixed: dict[int, bytes] = {}

    def whole(
        self, peer: Peer, status: int, headers: Mapping[str, str], request_id: str, length: int, more: bytes = b""
    ) -> bytes:
        """The head of an answer whose length is known; `more` are whole lines."""
        head = self._head(peer, status, headers, request_id)
        return b"%b%bContent-Length: %d\r\n\r\n" % (head, more, length)

    def stream(self, peer: Peer, request_id: str, more: bytes = b"") -> bytes:
        """The head of a stream of events. HTTP/1.0 knows no pieces: the connection's end is the answer's."""
        encoding = b"Transfer-Encoding: chunked\r\n\r\n" if peer.is_http_1_1 else b"\r\n"
        return self._head(peer, 200, STREAM, request_id) + more + encoding

    def _head(self, peer: Peer, status: int, headers: Mapping[str, str], request_id: str) -> bytes:
        second = int(unix_time_s())
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True).encode()
            self._fixed.clear()
        # The mappings of this module stay, and so do their addresses; those of errors are made for each.
        fixed = self._fixed.get(id(headers)) if status == 200 else None
        if fixed is None:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            fixed = b"%d %b\r\nDate: %b\r\n%b" % (status, _phrase(status), self._date, lines.encode("latin-1"))
            if status == 200:
                self._fixed[id(headers)] = fixed
        if peer.is_http_1_1:
            connection = b"" if peer.keeps_alive else b"Connection: close\r\n"
            return b"HTTP/1.1 %bX-Request-ID: %b\r\n%b" % (fixed, request_id.encode(), connection)
        connection = b"Connection: keep-alive\r\n" if peer.keeps_alive else b"Connection: close\r\n"
        return b"HTTP/1.0 %bX-Request-ID: %b\r\n%b" % (fixed, request_id.encode(), connection)


def piece(data: bytes) -> bytes:
    """A piece of a stream under HTTP/1.1."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"
