"""Server-sent events as OpenAI sends them: framing only, no JSON."""

from __future__ import annotations

from gateway.errors import error_body

HEAD = b"data: "
TAIL = b"\n\n"

DONE = b"data: [DONE]\n\n"
"""The last frame of a good stream, and of no other."""


def one_line(data: bytes) -> bytes:
    """The same JSON with U+0085, U+2028 and U+2029 escaped.

    Events end at LF and CR alone, but many clients cut the decoded stream into lines with their language's own idea of
    a line, which takes these three for an end as well. In JSON they occur only inside strings.
    """
    if data.isascii():
        return data
    return (
        data.replace(b"\xc2\x85", b"\\u0085").replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    )


def event(data: bytes) -> bytes:
    """One event. `data` is compact JSON."""
    return b"".join((HEAD, one_line(data), TAIL))


def error(cause: BaseException) -> bytes:
    """The end of a bad stream: OpenAI's clients raise when they read it. Nothing follows it, DONE least of all."""
    return event(error_body(cause))
