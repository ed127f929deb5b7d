"""A simulated OpenAI server that costs next to no CPU: what stands behind the systems that we are compared with.

python -m bench.dataplane.http_worker [--port 0] [--step-ms 5] [--stamp] [--max-num-seqs 1024]

Its tokens keep the pace of our simulated engine: one clock for all streams, whose step grows with the batch, and which
takes up new requests only when a step begins. Bodies are searched, not parsed. It prints `ready HOST:PORT`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import signal
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from bench.dataplane.system import MODEL
from worker.engines.sim.engine import MAX_LAG_S
from worker.engines.sim.step_time import SEQUENCE_RATIO

DEFAULT_MAX_TOKENS = 16
CONTEXT_LENGTH = 131_072
VOCABULARY = 100_003
WORD = "tok "

_HEAD_LIMIT = 1 << 16
_EDGE = 2048
"""Bytes at either end of a large body in which the fields are looked for first: messages stand between them."""

_MAX_TOKENS = re.compile(rb'"max_(?:completion_|new_)?tokens": ?(\d+)')
_STREAM_FIELD = re.compile(rb'"stream": ?(?:true|false)')
_USAGE = re.compile(rb'"include_usage": ?true')
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")

_JSON_HEAD = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = b'data: {"id":"chatcmpl-%d","object":"chat.completion.chunk","created":%d,"model":"%b","choices":[{"index":0,'
_ANSWER = (
    '{"id":"chatcmpl-%d","object":"chat.completion","created":%d,"model":"%s","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"%s"},"logprobs":null,"finish_reason":"length"}],'
    '"usage":{"prompt_tokens":8,"completion_tokens":%d,"total_tokens":%d}}'
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How tokens come."""

    step_ms: float = 5.0
    """0 answers as fast as it can: a step for each turn of the event loop."""
    stamp: bool = False
    max_num_seqs: int = 1024


class Answer(ABC):
    """One request that gains a token with each step."""

    def __init__(self, connection: Connection, tokens: int) -> None:
        self.connection = connection
        self.left = tokens
        self.cancelled = False

    def begin(self) -> None:  # noqa: B027
        """Called once, with the step that takes it up; no token has come yet."""

    @abstractmethod
    def emit(self, text: str) -> None:
        """A token; `left` says how many are still to come."""


class Engine:
    """The step clock that all answers share."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.requests = 0
        """Requests that were submitted, ever."""
        self._running: list[Answer] = []
        self._waiting: deque[Answer] = deque()
        self._due = 0.0
        self._stepping = False

    @property
    def unfinished(self) -> int:
        return len(self._running) + len(self._waiting)

    def submit(self, answer: Answer) -> None:
        """Queues an answer; it is taken up when the next step begins, which is at once when nothing runs."""
        self.requests += 1
        self._waiting.append(answer)
        if not self._stepping:
            self._due = time.monotonic()
            self._begin_step()

    def text(self) -> str:
        """The text of a token that is sent now."""
        return f"{time.monotonic_ns()} " if self.pace.stamp else WORD

    def _begin_step(self) -> None:
        pace, running, waiting = self.pace, self._running, self._waiting
        decoding = len(running)
        while waiting and len(running) < pace.max_num_seqs:
            answer = waiting.popleft()
            if not answer.cancelled:
                running.append(answer)
                answer.begin()
        self._stepping = bool(running)
        if not running:
            return
        loop = asyncio.get_running_loop()
        if pace.step_ms <= 0:
            loop.call_soon(self._end_step)
            return
        step_ms = pace.step_ms * (1 + SEQUENCE_RATIO * max(decoding - 1, 0))
        self._due = max(self._due + step_ms / 1000, time.monotonic() - MAX_LAG_S)
        # The loop's clock is time.monotonic.
        loop.call_at(self._due, self._end_step)

    def _end_step(self) -> None:
        ended = False
        for answer in self._running:
            if answer.cancelled:
                ended = True
                continue
            answer.left -= 1
            answer.emit(self.text())
            if answer.left <= 0:
                answer.cancelled = ended = True
        if ended:
            self._running = [answer for answer in self._running if not answer.cancelled]
        self._begin_step()


class PlainChat(Answer):
    """An answer that is sent whole."""

    def __init__(self, connection: Connection, tokens: int) -> None:
        super().__init__(connection, tokens)
        self._texts: list[str] = []

    def emit(self, text: str) -> None:
        self._texts.append(text)
        if not self.left:
            self.connection.send_json(whole_chat(self.connection.engine.requests, self._texts))


class StreamedChat(Answer):
    """A stream of server-sent events: a role, a chunk for each token, and with the last one the end."""

    def __init__(self, connection: Connection, tokens: int, with_usage: bool) -> None:
        super().__init__(connection, tokens)
        self._prefix = _CHUNK % (connection.engine.requests, int(time.time()), MODEL.encode())
        self._usage = b""
        if with_usage:
            usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": tokens + 8}
            head = self._prefix.removesuffix(b'[{"index":0,')
            self._usage = chunk(head + b'[],"usage":%b}\n\n' % json.dumps(usage).encode())
        self._token = self._prefix + b'"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}]}\n\n'
        # What is the same for every token but its text is measured once.
        self._token_length = len(self._token) - 2

    def begin(self) -> None:
        role = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        self.connection.write(_STREAM_HEAD % b"text/event-stream; charset=utf-8" + chunk(self._prefix + role))

    def emit(self, text: str) -> None:
        data = b"%x\r\n%b\r\n" % (self._token_length + len(text), self._token % text.encode())
        if self.left:
            self.connection.write(data)
            return
        finish = b'"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\n'
        done = chunk(b"data: [DONE]\n\n")
        self.connection.write(b"".join((data, chunk(self._prefix + finish), self._usage, done, b"0\r\n\r\n")))
        self.connection.end()


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream_head(content_type: bytes) -> bytes:
    """The head of a response with a chunked body."""
    return _STREAM_HEAD % content_type


def whole_chat(number: int, texts: list[str]) -> bytes:
    """The body of an answer that is sent whole."""
    tokens = len(texts)
    return (_ANSWER % (number, int(time.time()), MODEL, "".join(texts), tokens, tokens + 8)).encode()


def find(pattern: re.Pattern[bytes], body: bytes) -> re.Match[bytes] | None:
    """The first match near the ends of the body, or else anywhere. Inside strings quotes are escaped, so what looks
    like a field is one."""
    if len(body) > 2 * _EDGE:
        found = pattern.search(body, len(body) - _EDGE) or pattern.search(body, 0, _EDGE)
        if found:
            return found
    return pattern.search(body)


def max_tokens(body: bytes) -> int:
    """The tokens that a body asks for."""
    found = find(_MAX_TOKENS, body)
    return max(1, int(found[1])) if found else DEFAULT_MAX_TOKENS


def unchunked(data: bytes, start: int) -> tuple[bytes, int] | None:
    """The chunked body that begins at `start` and where it ends, or None while it is incomplete."""
    parts: list[bytes] = []
    while (line_end := data.find(b"\r\n", start)) >= 0:
        size = int(data[start:line_end].partition(b";")[0], 16)
        start = line_end + 2
        if not size:
            # Trailers are not expected: the empty line follows.
            return (b"".join(parts), start + 2) if len(data) >= start + 2 else None
        if len(data) < start + size + 2:
            return None
        parts.append(data[start : start + size])
        start += size + 2
    return None


Handler = Callable[["Connection", bytes], None]


class Connection(asyncio.Protocol):
    """One client's connection, which stays open. A request is answered before the next one is read."""

    def __init__(self, engine: Engine, routes: Mapping[bytes, Handler]) -> None:
        self.engine = engine
        self._routes = routes
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = lambda data: None
        self._parts: list[bytes] = []
        """What came of a request that is incomplete."""
        self._length = 0
        self._needed = 0
        """Bytes that the incomplete request has at least."""
        self._busy = False
        self._answer: Answer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # asyncio sets TCP_NODELAY.
        self._transport = transport
        self.write = transport.write

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.cancelled = True
            self._answer = None
        self.write = lambda data: None

    def data_received(self, data: bytes) -> None:
        self._length += len(data)
        if self._parts or self._busy:
            self._parts.append(data)
            if self._busy or self._length < self._needed:
                return
            data = b"".join(self._parts)
        self._read(data)

    def submit(self, answer: Answer) -> None:
        """Answers the request over the next steps."""
        self._answer = answer
        self.engine.submit(answer)

    def send_json(self, body: bytes, status: bytes = b"200 OK") -> None:
        """Answers the request whole."""
        self.write(_JSON_HEAD % (status, len(body)) + body)
        self.end()

    def end(self) -> None:
        """The answer is sent; the next request may come, or is there already."""
        self._answer = None
        self._busy = False
        if self._parts:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._parts and not self._busy:
            self._read(b"".join(self._parts))

    def _read(self, data: bytes) -> None:
        """Answers the request that `data` begins with, or keeps it until it is whole."""
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            self._keep(data, 0)
            return
        start = head_end + 4
        head = data[:head_end].lower()
        found = _CONTENT_LENGTH.search(head)
        if found:
            end = start + int(found[1])
            if len(data) < end:
                self._keep(data, end)
                if b"\r\nexpect:" in head and len(data) == start:
                    self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = data[start:end]
        elif b"\r\ntransfer-encoding:" in head:
            whole = unchunked(data, start)
            if whole is None:
                self._keep(data, 0)
                return
            body, end = whole
        else:
            body, end = b"", start
        rest = data[end:]
        self._parts, self._length, self._needed = ([rest] if rest else []), len(rest), 0
        self._busy = True
        self._serve(head, body)

    def _keep(self, data: bytes, needed: int) -> None:
        self._parts, self._length, self._needed = [data], len(data), needed
        if not needed and len(data) > _HEAD_LIMIT and b"\r\n\r\n" not in data[:_HEAD_LIMIT]:
            self._close()

    def _serve(self, head: bytes, body: bytes) -> None:
        words = head.split(b" ", 2)
        if len(words) < 3 or not words[2].startswith(b"http/1."):
            # Some routers try gRPC first.
            self._close()
            return
        path = words[1].partition(b"?")[0]
        handler = self._routes.get(path)
        if handler is not None:
            handler(self, body)
        else:
            self.send_json(b'{"error":{"message":"There is no such path.","type":"not_found"}}', b"404 Not Found")
        if b"\r\nconnection: close" in head and not self._busy:
            self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def chat(connection: Connection, body: bytes) -> None:
    """POST /v1/chat/completions."""
    tokens = max_tokens(body)
    field = find(_STREAM_FIELD, body)
    if field is not None and field[0].endswith(b"true"):
        connection.submit(StreamedChat(connection, tokens, find(_USAGE, body) is not None))
    elif connection.engine.pace.step_ms > 0:
        connection.submit(PlainChat(connection, tokens))
    else:
        engine = connection.engine
        engine.requests += 1
        connection.send_json(whole_chat(engine.requests, [engine.text()] * tokens))


def token_ids(body: bytes) -> list[int]:
    """Tokens of four bytes each, of a usual vocabulary's size: equal prefixes of prompts are equal prefixes of tokens,
    and that is all they are."""
    start = max(body.find(b'"messages":'), 0)
    end = body.rfind(b"}]") + 1
    data = body[start : end if end > start else len(body)]
    return [word % VOCABULARY for word in array("I", data[: len(data) // 4 * 4])]


def render(connection: Connection, body: bytes) -> None:
    """POST /v1/chat/completions/render, where the vLLM project's router asks for a prompt's tokens."""
    connection.send_json(b'{"request_id":"r","token_ids":[%b]}' % ",".join(map(str, token_ids(body))).encode())


def tokenize(connection: Connection, body: bytes) -> None:
    """POST /tokenize, where it asks next if the former is not there."""
    tokens = token_ids(body)
    words = (len(tokens), CONTEXT_LENGTH, ",".join(map(str, tokens)).encode())
    connection.send_json(b'{"count":%d,"max_model_len":%d,"tokens":[%b]}' % words)


def fixed(value: object) -> Handler:
    """Answers with the same JSON always."""
    body = json.dumps(value).encode()
    return lambda connection, _: connection.send_json(body)


def count(connection: Connection, body: bytes) -> None:
    """GET /requests: how many requests this worker was given, to see how a system spreads them."""
    connection.send_json(b'{"requests":%d}' % connection.engine.requests)


_CARD = {"id": MODEL, "object": "model", "created": 0, "owned_by": "lbcore", "max_model_len": CONTEXT_LENGTH}
_SERVER = {"model_path": MODEL, "served_model_name": MODEL, "context_length": CONTEXT_LENGTH, "version": "0"}
_MODEL = {"model_path": MODEL, "tokenizer_path": MODEL, "is_generation": True}

ROUTES: Mapping[bytes, Handler] = {
    b"/v1/chat/completions": chat,
    b"/v1/chat/completions/render": render,
    b"/tokenize": tokenize,
    b"/v1/models": fixed({"object": "list", "data": [_CARD]}),
    b"/health": fixed({"status": "healthy"}),
    b"/health_generate": fixed({"status": "healthy"}),
    b"/get_server_info": fixed(_SERVER),
    b"/server_info": fixed(_SERVER),
    b"/get_model_info": fixed(_MODEL),
    b"/model_info": fixed(_MODEL),
    b"/requests": count,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every simulated HTTP worker has."""
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--step-ms", type=float, default=5.0, help="time of a decoding step; 0 is as fast as it can")
    parser.add_argument("--stamp", action="store_true", help="each token's text is CLOCK_MONOTONIC in nanoseconds")
    parser.add_argument("--max-num-seqs", type=int, default=1024, help="streams that decode at once")


Ready = Callable[[Engine, str], Awaitable[None]]


async def serve(arguments: argparse.Namespace, routes: Mapping[bytes, Handler], ready: Ready | None = None) -> None:
    """Serves until SIGTERM or SIGINT; `ready` is called with the worker's URL before it says that it is ready."""
    engine = Engine(Pace(arguments.step_ms, arguments.stamp, arguments.max_num_seqs))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(lambda: Connection(engine, routes), "127.0.0.1", arguments.port, backlog=4096)
    host, port = server.sockets[0].getsockname()
    if ready is not None:
        await ready(engine, f"http://{host}:{port}")
    print(f"ready {host}:{port}", flush=True)
    gc.collect()
    gc.freeze()
    await stop.wait()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description="A simulated OpenAI server that costs next to no CPU.")
    add_arguments(parser)
    asyncio.run(serve(parser.parse_args(), ROUTES))


if __name__ == "__main__":
    main()
