"""Two readers of one head: what the strict one accepts, aiohttp's reads the same, so nothing can hide in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.express import Head, read_head
from gateway.terms import printable, terms_of
from lbcore.generation import Dialect

START = b"POST /v1/chat/completions HTTP/1.1\r\n"
LENGTH = b"Content-Length: 5\r\n"
NEXT = b"GET /behind HTTP/1.1\r\nHost: x\r\n\r\n"
PATHS = {Dialect.CHAT: "/v1/chat/completions", Dialect.COMPLETION: "/v1/completions"}
ENOUGH = 32 * 1024
"""aiohttp reads no line of more than 8 KiB and no more than 128 of them; the strict reader counts only the whole."""


class Other:
    """What aiohttp reads of a connection on which nothing more comes."""

    def __init__(self, data: bytes) -> None:
        loop = asyncio.new_event_loop()
        try:
            parser: Any = HttpRequestParser(
                BaseProtocol(loop), loop, 2**16, max_line_size=ENOUGH, max_headers=ENOUGH, max_field_size=ENOUGH
            )
            self.requests, self.is_upgraded, self.tail = parser.feed_data(data)
            self.bodies = [body.read_nowait(-1) if hasattr(body, "read_nowait") else b"" for _, body in self.requests]
        finally:
            loop.close()


def agree(data: bytes) -> Head | None:
    """Reads a head in both ways, with a body and another request behind it; they must not differ."""
    head = read_head(data)
    if head is None:
        return None
    body = b"b" * min(head.length, 1000)
    is_complete = len(body) == head.length
    other = Other(data[: head.size] + body + (NEXT if is_complete else b""))
    first, *following = [message for message, _ in other.requests]
    assert (first.method, first.path, first.version) == ("POST", PATHS[head.dialect], (1, 1))
    assert int(first.headers["Content-Length"]) == head.length
    assert not first.chunked
    assert not first.upgrade
    assert not first.should_close
    assert other.bodies[0] == body
    assert [message.path for message in following] == (["/behind"] if is_complete else [])
    assert printable(first.headers.get("X-Request-ID", "")) == head.request_id
    assert terms_of(first.headers) == head.terms
    return head


_NAMES = st.sampled_from(
    [
        b"Content-Length",
        b"content-length",
        b"Transfer-Encoding",
        b"transfer-encoding",
        b"X-Request-ID",
        b"x-request-id",
        b"X-Session-ID",
        b"X-Tenant-ID",
        b"x-tenant-id",
        b"Authorization",
        b"authorization",
        b"X-Priority",
        b"X-SLO-TTFT-MS",
        b"X-Request-Timeout-MS",
        b"Connection",
        b"Host",
        b"Accept",
        b"X-!#$%&'*+-.^_`|~9",
        b"Content-Length-",
        b"X-Content-Length",
    ]
) | st.binary(min_size=1, max_size=6)
_COLONS = st.sampled_from([b":", b": ", b":\t", b": \t ", b" :", b"\t:", b": ", b": ", b""])
_VALUES = st.one_of(
    st.sampled_from([b"5", b"0", b"7", b"007", b"+5", b"5 ", b"5\t", b"0x5", b"5,5", b"chunked", b"keep-alive", b""]),
    st.sampled_from([b"mine", b"mine ", b"mine\t", b"m ine", b"x" * 128, b"x" * 129, b"\xe9", b"\xc3\xa9", b'"mine"']),
    st.sampled_from(
        [b"Bearer key", b"bearer  key\t", b"BEARER\tkey", b"Bearer", b"Bearer \xe9", b"Basic key", b"Bearer a b"]
    ),
    st.binary(max_size=8),
)
_ENDS = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\r\r\n"])
_LINES = st.builds(lambda *parts: b"".join(parts), _NAMES, _COLONS, _VALUES, _ENDS)
_PLAIN = st.builds(
    lambda name, value: name + b": " + value + b"\r\n",
    st.sampled_from(
        [b"Host", b"X-Request-ID", b"X-Session-ID", b"X-Tenant-ID", b"Authorization", b"X-Other", b"Accept"]
    ),
    _VALUES,
)
_LENGTH = st.integers(0, 2000).map(lambda length: b"Content-Length: %d\r\n" % length)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads that are nearly good, and some that are."""
    lines = draw(st.lists(_PLAIN | _LINES if draw(st.booleans()) else _PLAIN, max_size=4))
    for usual in (b"Host: x\r\n", draw(_LENGTH)):
        lines.insert(draw(st.integers(0, len(lines))), usual)
    return START + b"".join(lines) + b"\r\n"


@settings(max_examples=500)
@given(heads())
def test_what_is_accepted_is_read_the_same_by_aiohttp(data: bytes) -> None:
    agree(data)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Host: y\r\nHost: x\r\n",
        b"Host: x\r\nX-Request-ID: one\r\nX-Request-ID: two\r\n",
        b"Host: x\r\nX-Request-ID: one\r\nX-Request-ID: \xe9\r\n",
        b"Host: x\r\nX-Session-ID: one\r\nX-Session-ID: two\r\n",
        b"Host: x\r\nX-Request-ID: mine\xa0\r\n",
        b"Host: x\r\nX-Request-ID: mine\x85\r\n",
        b"Host: x\r\nX-Session-ID: mine\xa0\r\n",
        b"Host: x\r\nX-Tenant-ID: mine\xa0\r\nAuthorization: Bearer key\r\n",
        b"Host: x\r\nX-Tenant-ID: one\r\nX-Tenant-ID: two\r\n",
        b"Host: x\r\nX-Tenant-ID: \r\nAuthorization: Bearer key\r\n",
        b"Host: x\r\nAuthorization: Bearer key\xa0\r\n",
        b"Host: x\r\nAuthorization: Bearer one\r\nAuthorization: Bearer two\r\n",
        b"Host: x\r\nProxy-Connection: close\r\n",
        b"Host: x\r\nX-Request-ID: mine \t \r\n",
        b"Host: x\r\nX-Request-ID: m\tine\r\n",
        b"Host: x\r\nX-Request-ID: \r\n",
        b"Host:\r\n",
        b"Host: x\r\nConnection: keep-alive\r\nConnection: keep-alive\r\n",
        b"Host: x\r\nKeep-Alive: timeout=5\r\n",
        b"Host: x\r\nTE: trailers\r\n",
        b"Host: x\r\nTrailer: X\r\n",
        b"Host: x\r\nX: \xff\xfe\r\n",
        b"Host: x\r\nX:\r\n",
    ],
    ids=[
        "no host",
        "two hosts",
        "two ids",
        "two ids, one of them none",
        "two sessions",
        "no-break space",
        "next line",
        "session and no-break space",
        "tenant and no-break space",
        "two tenants",
        "no tenant and a key",
        "key and no-break space",
        "two keys",
        "proxy's connection",
        "space behind",
        "tab inside",
        "no id",
        "empty host",
        "two connections",
        "keep-alive",
        "te",
        "trailer",
        "no utf-8",
        "empty",
    ],
)
def test_what_may_stand_in_a_head_is_read_the_same_or_left_alone(lines: bytes) -> None:
    agree(START + lines + LENGTH + b"\r\n")


@pytest.mark.parametrize("length", [b":5", b":\t5", b": 0005", b":  \t 5"])
def test_a_length_may_be_written_in_some_ways(length: bytes) -> None:
    head = agree(START + b"Host: x\r\nContent-Length" + length + b"\r\n\r\n")
    assert head is not None
    assert head.length == 5


@settings(max_examples=500)
@given(st.data())
def test_a_good_head_with_a_few_bytes_changed_is_read_the_same_or_left_alone(data: st.DataObject) -> None:
    good = START + b"Host: x\r\nX-Request-ID: mine\r\nContent-Length: 57\r\nConnection: keep-alive\r\n\r\n"
    at = data.draw(st.integers(0, len(good)))
    upto = data.draw(st.integers(at, min(len(good), at + 4)))
    agree(good[:at] + data.draw(st.binary(max_size=4)) + good[upto:])


def test_a_plain_head_is_read_the_same() -> None:
    for path in PATHS.values():
        head = agree(
            b"POST %b HTTP/1.1\r\nHost: x\r\nx-REQUEST-id:  mine \r\nContent-Length: 57\r\n\r\n" % path.encode()
        )
        assert head is not None
        assert (head.length, head.request_id) == (57, "mine")


@pytest.mark.parametrize(
    "lines",
    [
        LENGTH + LENGTH,
        LENGTH + b"content-length: 6\r\n",
        b"Content-Length: 5,5\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: 5\t\r\n",
        b"Content-Length: 5 \r\n",
        b"Content-Length: \x0b5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5h\r\n",
        b"Content-Length: 5.0\r\n",
        b"Content-Length: 5e0\r\n",
        b"Content-Length: 1_0\r\n",
        b"Content-Length: \xd9\xa5\r\n",
        b"Content-Length: \r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length\t: 5\r\n",
        b" Content-Length: 5\r\n",
        b"\tContent-Length: 5\r\n",
        b"Content\tLength: 5\r\n",
        b"Content-Length: 5\n",
        b"Content-Length: 5\r",
        b"Content-Length: 5\r\r\n",
        b"Content-Length: 5\x00\r\n",
        b"Content-Length\x00: 5\r\n",
        b"\x00Content-Length: 5\r\n",
        b"Content-Length: 5\r\n 0\r\n",
        b"Content-Length: 5\r\n\t0\r\n",
        b"Content-Length:\r\n 5\r\n",
        LENGTH + b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n" + LENGTH,
        b"Transfer-Encoding: chunked\r\n",
        LENGTH + b"TRANSFER-ENCODING: chunked\r\n",
        LENGTH + b"tRaNsFeR-eNcOdInG: ChUnKeD\r\n",
        LENGTH + b"Transfer-Encoding:chunked\r\n",
        LENGTH + b"Transfer-Encoding:\tchunked\r\n",
        LENGTH + b"Transfer-Encoding: \x0bchunked\r\n",
        LENGTH + b"Transfer-Encoding : chunked\r\n",
        LENGTH + b"Transfer-Encoding\t: chunked\r\n",
        LENGTH + b" Transfer-Encoding: chunked\r\n",
        LENGTH + b"\tTransfer-Encoding: chunked\r\n",
        LENGTH + b"Transfer-Encoding: identity\r\n",
        LENGTH + b"Transfer-Encoding: \r\n",
        LENGTH + b"Transfer-Encoding: x\r\n",
        LENGTH + b"Transfer-Encoding\x00: chunked\r\n",
        LENGTH + b"X: y\nTransfer-Encoding: chunked\r\n",
        LENGTH + b"X: y\rTransfer-Encoding: chunked\r\n",
        LENGTH + b"X: y\r\n folded\r\n",
        LENGTH + b"X: y\r\n\tfolded\r\n",
        LENGTH + b"X: y\x00z\r\n",
        LENGTH + b"X: y\n",
        LENGTH + b"X\t: y\r\n",
        LENGTH + b"X Y: z\r\n",
        LENGTH + b"X\n: y\r\n",
        LENGTH + b"X\xe9: y\r\n",
    ],
)
def test_what_smugglers_write_is_never_accepted(lines: bytes) -> None:
    for host in (b"", b"Host: x\r\n"):
        assert read_head(START + host + lines + b"\r\n") is None
        assert read_head(START + lines + host + b"\r\n") is None


@pytest.mark.parametrize("end", [b"\n\n", b"\n\r\n", b"\r\n\n", b"\r\r", b"\r\n\r", b"\r\n \r\n", b"\r\n\x00\r\n"])
def test_a_head_ends_in_an_empty_line_and_nothing_like_it(end: bytes) -> None:
    data = START + b"Host: x\r\nContent-Length: 5"
    assert read_head(data + end) is None
    assert read_head(data + end + b"b" * 5) is None


def test_what_looks_like_a_field_in_the_body_is_none() -> None:
    data = START + b"Host: x\r\n" + LENGTH + b"\r\n"
    head = agree(data + b"Transfer-Encoding: chunked\r\n\r\n")
    assert head is not None
    assert head.size == len(data)
