"""HTTP as far as llama.cpp's server speaks it: a request out, an answer in, its server-sent events taken apart. Pure.

Bytes go in as the socket gives them, in pieces of any size; whole events come out. Nothing here waits or knows a
socket.
"""

from __future__ import annotations

from collections.abc import Iterable

_HEAD_END = b"\r\n\r\n"
_EVENT_END = b"\n\n"
_DATA = b"data: "
_ERROR = b"error: "

MAX_HEAD_BYTES = 64 * 1024
"""A head longer than this is not llama.cpp's, whose heads have a few hundred bytes."""


class BadAnswer(Exception):
    """What came is not HTTP, or not whole."""


def http_post(path: str, api_key: str, body: bytes) -> bytes:
    """A request with a JSON body, on a connection of its own."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class AnswerReader:
    """Reads one answer.

    `feed` returns the data of every event that is complete. An answer that is no event stream, as errors are, has no
    events; its `body` grows instead.
    """

    def __init__(self) -> None:
        self.status = 0
        """0 until the head has come."""
        self.complete = False
        """Whether the answer ended as its head announced."""
        self._is_stream = False
        self._chunked = False
        self._left: int | None = None
        self._head = b""
        self._chunks = b""
        self._events = b""
        self._body: list[bytes] = []

    @property
    def body(self) -> bytes:
        return b"".join(self._body)

    @property
    def is_stream(self) -> bool:
        """Whether this is an event stream; False until the head has come."""
        return self._is_stream

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes. Raises BadAnswer for what is not HTTP."""
        if not self.status:
            data = self._take_head(data)
            if not self.status:
                return []
        pieces = self._dechunk(data) if self._chunked else self._count(data)
        if self._is_stream:
            return self._take_events(pieces)
        self._body += pieces
        return []

    def _take_head(self, data: bytes) -> bytes:
        """Reads the head when it is complete; returns what follows it."""
        self._head += data
        head, end, rest = self._head.partition(_HEAD_END)
        if not end:
            if len(head) > MAX_HEAD_BYTES:
                raise BadAnswer("the head of the answer does not end")
            return b""
        self._head = b""
        status_line, *lines = head.split(b"\r\n")
        version, _, status = status_line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
            raise BadAnswer("the answer is not HTTP")
        headers = {name.strip().lower(): value.strip().lower() for name, _, value in (s.partition(b":") for s in lines)}
        self.status = int(status[:3])
        self._is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        self._chunked = headers.get(b"transfer-encoding") == b"chunked"
        length = headers.get(b"content-length")
        if length is not None and not self._chunked:
            self._left = _size(length, 10)
            self.complete = self._left == 0
        return rest

    def _count(self, data: bytes) -> Iterable[bytes]:
        if self._left is not None:
            self._left -= len(data)
            self.complete = self._left <= 0
        return (data,)

    def _dechunk(self, data: bytes) -> list[bytes]:
        """The contents of the chunks that are complete; llama.cpp writes about one event in each."""
        pieces: list[bytes] = []
        data = self._chunks + data if self._chunks else data
        at = 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            size = _size(data[at:line_end], 16)
            end = line_end + 2 + size
            if not size:
                self.complete = True
            if len(data) < end + 2:
                break
            pieces.append(data[line_end + 2 : end])
            at = end + 2
        self._chunks = data[at:]
        return pieces

    def _take_events(self, pieces: Iterable[bytes]) -> list[bytes]:
        *events, self._events = (self._events + b"".join(pieces)).split(_EVENT_END)
        # What starts otherwise is a comment: llama.cpp sends some to keep connections open.
        return [
            event[len(_DATA) :] if event.startswith(_DATA) else event[len(_ERROR) :]
            for event in events
            if event.startswith((_DATA, _ERROR))
        ]


def _size(digits: bytes, base: int) -> int:
    try:
        size = int(digits, base)
    except ValueError:
        raise BadAnswer("the answer is not HTTP") from None
    if size < 0:
        raise BadAnswer("the answer is not HTTP")
    return size
