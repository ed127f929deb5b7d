"""Takes a stream of server-sent events apart, as the HTML standard describes it. Pure.

Bytes go in as the network gives them, in pieces of any size, and whole data comes out. Characters are never decoded
here, so none can be torn.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 * 2**20
"""An event longer than this is nobody's answer: a token with log probabilities has a few kilobytes, a whole answer
with those of 8,192 tokens about 10 MB."""

_BOM = b"\xef\xbb\xbf"
_DATA = b"data: "


class EventTooLong(Exception):
    """An event went on beyond `MAX_EVENT_BYTES`."""


class SseParser:
    """Reads one stream: `feed` returns the data of every event that is complete, `flush` that of one cut short.

    Comments, ids and the names of events are passed over. The field `error`, in which older llama.cpp servers say what
    went wrong, is taken for data.
    """

    def __init__(self) -> None:
        self._begun = False
        self._after_cr = False
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Takes the next bytes. Raises EventTooLong."""
        if not self._begun:
            piece = b"".join(self._held) + piece
            if len(piece) < len(_BOM) and _BOM.startswith(piece):
                self._held = [piece]
                return []
            self._begun, self._held = True, []
            piece = piece.removeprefix(_BOM)
        if self._after_cr or b"\r" in piece:
            piece = self._with_plain_line_ends(piece)
        if b"\n" not in piece:
            self._hold(piece)
            return []
        *events, rest = b"".join([*self._held, piece]).split(b"\n\n")
        self._held, self._held_bytes = [], 0
        self._hold(rest)
        return [data for event in events if (data := _data(event))]

    def flush(self) -> bytes:
        """The data of an event that the stream ended in, without its empty line; empty when there is none.

        The standard throws it away. Some servers leave the line out behind the last event, and half an event is no
        JSON, so nothing can be mistaken.
        """
        held, self._held, self._held_bytes = b"".join(self._held), [], 0
        return _data(held)

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._held.append(piece)
            self._held_bytes += len(piece)
            if self._held_bytes > MAX_EVENT_BYTES:
                raise EventTooLong

    def _with_plain_line_ends(self, piece: bytes) -> bytes:
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = self._after_cr or piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes:
    if event.startswith(_DATA) and b"\n" not in event:
        return event[len(_DATA) :]
    lines = (line.partition(b":") for line in event.split(b"\n"))
    return b"\n".join(value.removeprefix(b" ") for name, _, value in lines if name in (b"data", b"error"))
