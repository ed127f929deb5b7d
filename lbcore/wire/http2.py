"""One gRPC stream over one HTTP/2 connection, from the caller's side: bytes in, messages out, and the other way round.

As much of HTTP/2 (RFC 9113) as a stream needs that lives as long as its connection, and gRPC's framing of messages in
it. Pure: it writes through a function that it is given, and knows no sockets and no time. Headers of answers are not
read: what a stream has to say it says in messages, and its end is its end.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 5, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5

STREAM = 1
"""The number of the only stream."""

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_BYTES = 16_384
MAX_WINDOW = 2**31 - 1

_FRAME = Struct(">HBBBL")
_PREFIX = Struct(">BL")
_SETTING = Struct(">HL")
_FRAME_BYTES, _PREFIX_BYTES = 9, 5


class ProtocolError(Exception):
    """The peer does not speak as it should."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 255, kind, flags, stream) + payload


def number(value: int) -> bytes:
    """A number as most frames hold it."""
    return value.to_bytes(4, "big")


class Call:
    """The stream, from its first byte to its end."""

    __slots__ = (
        "_connection_window_in",
        "_connection_window_out",
        "_deliver",
        "_frame_bytes_out",
        "_initial_window_out",
        "_max_message_bytes",
        "_missing",
        "_parts",
        "_prefix",
        "_rest",
        "_unsent",
        "_window_bytes",
        "_window_in",
        "_window_out",
        "_write",
        "is_over",
    )

    def __init__(
        self,
        write: Callable[[bytes], None],
        deliver: Callable[[bytes], None],
        *,
        unread_bytes: int,
        max_message_bytes: int,
    ) -> None:
        """`write` takes bytes for the peer, `deliver` each message of it. At most `unread_bytes` may be on their way
        that were not delivered, unless a message is larger."""
        self._write = write
        self._deliver = deliver
        self._max_message_bytes = max_message_bytes
        self._window_bytes = unread_bytes
        self._window_in = unread_bytes
        self._connection_window_in = MAX_WINDOW
        self._window_out = DEFAULT_WINDOW
        self._connection_window_out = DEFAULT_WINDOW
        self._initial_window_out = DEFAULT_WINDOW
        self._frame_bytes_out = DEFAULT_FRAME_BYTES
        self._unsent = memoryview(b"")
        self._rest = b""
        self._prefix = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self.is_over = False
        """Whether the peer has ended the stream."""

    def begin(self, path: str, authority: str) -> None:
        """Opens connection and stream. `path` is /SERVICE/METHOD."""
        settings = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, self._window_bytes))
        headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "lbcore"),
        )
        self._write(
            b"".join(
                (
                    PREFACE,
                    frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings)),
                    # Only the stream is held back: nothing else is on this connection.
                    frame(WINDOW_UPDATE, 0, 0, number(MAX_WINDOW - DEFAULT_WINDOW)),
                    frame(HEADERS, END_HEADERS, STREAM, b"".join(_header(*header) for header in headers)),
                )
            )
        )

    @property
    def may_send(self) -> bool:
        """Whether the peer has taken all that was sent, as far as it must before there is room for more."""
        return not self._unsent

    def send(self, *message: bytes) -> None:
        """Sends a message, in as many parts as one likes; at once, as far as the peer has room for it. Only while
        `may_send`."""
        size = _PREFIX_BYTES + sum(map(len, message))
        prefix = _PREFIX.pack(0, size - _PREFIX_BYTES)
        if size <= self._window_out and size <= self._connection_window_out and size <= self._frame_bytes_out:
            self._window_out -= size
            self._connection_window_out -= size
            self._write(b"".join((_FRAME.pack(size >> 8, size & 255, DATA, 0, STREAM), prefix, *message)))
        else:
            self._unsent = memoryview(b"".join((prefix, *message)))
            self._send_rest()

    def ping(self) -> None:
        """Asks the peer for a sign of life."""
        self._write(frame(PING, 0, 0, bytes(8)))

    def receive(self, data: bytes) -> None:
        """Takes what the peer has sent.

        Raises:
            ProtocolError: it makes no sense.
        """
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= _FRAME_BYTES:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            size = high << 8 | low
            if size > DEFAULT_FRAME_BYTES:
                raise ProtocolError(f"a frame of {size} bytes")
            begin = at + _FRAME_BYTES
            if begin + size > end:
                break
            at = begin + size
            if kind == DATA:
                self._take_data(data, begin, at, flags)
            else:
                self._take_other(kind, flags, stream, data[begin:at])
        self._rest = data[at:]
        self._make_room()

    def _take_data(self, data: bytes, at: int, end: int, flags: int) -> None:
        self._window_in -= end - at
        self._connection_window_in -= end - at
        if flags & PADDED:
            end -= data[at]
            at += 1
        while at < end:
            if self._missing:
                part = data[at : min(end, at + self._missing)]
                at += len(part)
                self._parts.append(part)
                self._missing -= len(part)
                if not self._missing:
                    message, self._parts = b"".join(self._parts), []
                    self._deliver(message)
                continue
            prefix = self._prefix + data[at : min(end, at + _PREFIX_BYTES - len(self._prefix))]
            at += len(prefix) - len(self._prefix)
            if len(prefix) < _PREFIX_BYTES:
                self._prefix = prefix
                break
            self._prefix = b""
            size = self._size_of_message(prefix)
            if size <= end - at:
                # As nearly every message: whole, within one frame.
                self._deliver(data[at : at + size])
                at += size
            else:
                self._missing = size
        if flags & END_STREAM:
            self.is_over = True

    def _size_of_message(self, prefix: bytes) -> int:
        is_compressed, size = _PREFIX.unpack(prefix)
        if is_compressed:
            raise ProtocolError("a message that is compressed, which nobody asked for")
        if size > self._max_message_bytes:
            raise ProtocolError(f"a message of {size} bytes")
        return int(size)

    def _take_other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big") & MAX_WINDOW
            if stream:
                self._window_out += more
            else:
                self._connection_window_out += more
            self._send_rest()
        elif kind == SETTINGS:
            if not flags & ACK:
                self._take_settings(payload)
        elif kind == PING:
            if not flags & ACK:
                self._write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self.is_over = True
        elif kind == GOAWAY:
            # A peer that leaves in order ends the stream itself when it is done with it.
            self.is_over = self.is_over or int.from_bytes(payload[:4], "big") & MAX_WINDOW < STREAM
        elif kind == PUSH_PROMISE:
            raise ProtocolError("a push that was refused beforehand")

    def _take_settings(self, payload: bytes) -> None:
        if len(payload) % _SETTING.size:
            raise ProtocolError("settings that are cut off")
        for name, value in _SETTING.iter_unpack(payload):
            if name == INITIAL_WINDOW_SIZE:
                self._window_out += value - self._initial_window_out
                self._initial_window_out = value
            elif name == MAX_FRAME_SIZE:
                self._frame_bytes_out = value
        self._write(frame(SETTINGS, ACK, 0))
        self._send_rest()

    def _send_rest(self) -> None:
        unsent = self._unsent
        if not unsent:
            return
        parts: list[bytes | memoryview] = []
        at = 0
        while at < len(unsent):
            size = min(self._window_out, self._connection_window_out, self._frame_bytes_out, len(unsent) - at)
            if size <= 0:
                break
            self._window_out -= size
            self._connection_window_out -= size
            parts += (_FRAME.pack(size >> 8, size & 255, DATA, 0, STREAM), unsent[at : at + size])
            at += size
        if parts:
            self._unsent = unsent[at:]
            self._write(b"".join(parts))

    def _make_room(self) -> None:
        """Lets the peer send on, when half of the room is used up, and the rest of a large message at once."""
        wanted = max(self._window_bytes, self._missing)
        if self._window_in <= wanted // 2:
            self._write(frame(WINDOW_UPDATE, 0, STREAM, number(wanted - self._window_in)))
            self._window_in = wanted
        if self._connection_window_in < MAX_WINDOW // 2:
            self._write(frame(WINDOW_UPDATE, 0, 0, number(MAX_WINDOW - self._connection_window_in)))
            self._connection_window_in = MAX_WINDOW


def _header(name: str, value: str) -> bytes:
    """A header as HPACK (RFC 7541) has it that is in no table: a literal, neither compressed nor remembered."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    size, head = len(data) - 127, bytearray((127,))
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + data
