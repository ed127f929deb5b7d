"""A client of the gateway that speaks HTTP by hand, strict about every byte it reads, and one that does not read."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import NamedTuple

import orjson

from tests.wire.conftest import soon
from tests.wire.gateway_host import CHAT, Gateway

PATH = b"/v1/chat/completions"
OTHER_WAY = PATH + b"?"
"""The same, and enough to be read by aiohttp."""
WHOLE = orjson.dumps(CHAT)
STREAM = orjson.dumps({**CHAT, "stream": True})


class Answer(NamedTuple):
    version: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    pieces: int
    """Chunks that the body came in; 0 when it was not chunked."""


class Browser:
    """One connection to the gateway, spoken by hand: strict about what it reads, free in what it sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def ask(self, body: bytes, *headers: bytes, path: bytes = PATH, version: bytes = b"1.1") -> Answer:
        await self.send(request(body, *headers, path=path, version=version))
        return await self.answer()

    async def answer(self, *, has_body: bool = True) -> Answer:
        """The next answer; an error where it is not what HTTP says it must be."""
        status_line = await self._line()
        match = re.fullmatch(rb"HTTP/(1\.[01]) (\d\d\d) ([ -~]+)", status_line)
        assert match, status_line
        headers: dict[str, str] = {}
        while line := await self._line():
            name, _, value = line.decode("ascii").partition(": ")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        body, pieces = bytearray(), 0
        if not has_body:
            pass
        elif headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers
            assert match[1] == b"1.1"
            while piece := await self._piece():
                body += piece
                pieces += 1
        elif "content-length" in headers:
            body += await soon(self._reader.readexactly(int(headers["content-length"])))
        else:
            assert headers["connection"] == "close"
            body += await soon(self._reader.read())
        return Answer(match[1], int(match[2]), headers, bytes(body), pieces)

    async def is_over(self) -> bool:
        """Whether the gateway closes the connection and says nothing before."""
        return await soon(self._reader.read()) == b""

    async def read_any(self) -> bytes:
        return await soon(self._reader.read(2**16))

    async def hears(self, data: bytes) -> None:
        """Reads until this has come, and is not strict about it."""
        heard = b""
        while data not in heard:
            more = await self.read_any()
            assert more, f"the end of the connection, and before it {heard!r}"
            heard += more

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Goes away without a farewell."""
        self._writer.transport.abort()

    async def _line(self) -> bytes:
        line = await soon(self._reader.readuntil(b"\r\n"))
        return line.removesuffix(b"\r\n")

    async def _piece(self) -> bytes:
        size = await self._line()
        assert re.fullmatch(rb"[0-9a-fA-F]+", size), size
        piece = await soon(self._reader.readexactly(int(size, 16)))
        assert await self._line() == b""
        return piece


def request(
    body: bytes, *headers: bytes, path: bytes = PATH, version: bytes = b"1.1", method: bytes = b"POST"
) -> bytes:
    length = () if any(b"Transfer-Encoding" in header for header in headers) else (b"Content-Length: %d" % len(body),)
    lines = (b"%s %s HTTP/%s" % (method, path, version), b"Host: x", *headers, *length, b"", b"")
    return b"\r\n".join(lines) + body


class SlowReader:
    """A client that reads nothing until it is told to."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def ask(self, gateway: Gateway, body: bytes, *more: bytes, path: bytes = PATH) -> None:
        """`more` are requests sent along with the first, byte for byte."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(self._socket, b"".join((request(body, path=path), *more)))

    async def read_on(self) -> Browser:
        """From now on it reads as others do."""
        return Browser(*await asyncio.open_connection(sock=self._socket))

    def close(self) -> None:
        self._socket.close()


async def connect(gateway: Gateway) -> Browser:
    return Browser(*await asyncio.open_connection("127.0.0.1", gateway.port))


def said(answer: Answer) -> str:
    """The text of an answer, whole or streamed, which must be complete."""
    assert answer.status == 200, answer
    if answer.headers["content-type"] == "application/json":
        text = orjson.loads(answer.body)["choices"][0]["message"]["content"]
        assert isinstance(text, str)
        return text
    frames = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert frames.pop() == "data: [DONE]"
    chunks = [orjson.loads(frame.removeprefix("data: ")) for frame in frames]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
