"""The engine that is somebody else's server: what a token and a request cost in CPU, and how long a cancellation takes.

python -m bench.openai_engine [--tokens 200] [--requests 2000] [--repeat 3] [--body-bytes 2000]

The server is a scripted one in a process of its own. It answers as fast as it can with one chunk for each write
("each"), with all of an answer at once ("burst"), or with a token every 2 ms, each in a packet of its own ("paced").
"our CPU" is all of this process, which does nothing but send, read, parse and emit.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from random import Random

import orjson

from lbcore.clock import MonotonicClock
from lbcore.generation import Delta, Dialect, Event, Failed, Finished, GenerationRequest
from worker.engines.openai.engine import OpenAIEngine, UpstreamOptions
from worker.engines.openai.kinds import KINDS
from worker.engines.openai.page import read_page
from worker.engines.openai.rewrite import append, rewrite

STREAMS = (1, 8, 64)
MODELS = orjson.dumps({"data": [{"id": "m", "owned_by": "bench", "max_model_len": 8192}]})


class Server(asyncio.Protocol):
    """Speaks just enough HTTP, with next to no CPU of its own, to serve streams on connections that stay open."""

    clients_gone: list[float] = []  # noqa: RUF012

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._writing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._writing is not None and not self._writing.done():
            Server.clients_gone.append(time.monotonic())
            self._writing.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            if len(rest) < length:
                return
            body, self._buffer = rest[:length], rest[length:]
            self._serve(head.split(b" ", 2)[1], body)

    def _serve(self, path: bytes, body: bytes) -> None:
        assert self._transport is not None
        if path.startswith(b"/v1/chat"):
            self._writing = asyncio.ensure_future(self._stream(orjson.loads(body)))
            return
        answers = {b"/v1/models": MODELS, b"/health": b"{}", b"/gone": orjson.dumps(Server.clients_gone)}
        found = answers.get(path)
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (b"200 OK" if found else b"404 X", len(found or b"")) + (found or b""))

    async def _stream(self, asked: dict[str, object]) -> None:
        assert self._transport is not None
        tokens, how = int(str(asked["max_tokens"])), asked.get("user")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        token = _http(_event({"choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}]}))
        usage = {"prompt_tokens": 100, "completion_tokens": tokens}
        end = _http(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": usage}))
        end += _http(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        if how == "burst":
            self._transport.write(head + token * tokens + end)
            return
        self._transport.write(head)
        for _ in range(tokens):
            self._transport.write(token)
            await asyncio.sleep(0.002 if how == "paced" else 0)
        self._transport.write(end)


def _event(chunk: dict[str, object]) -> bytes:
    # About as long as the chunks of vLLM.
    frame = {"id": "chatcmpl-0123456789abcdef0123456789abcdef", "object": "chat.completion.chunk", "created": 1}
    return b"data: " + orjson.dumps({**frame, "model": "some/model-of-8B", **chunk}) + b"\n\n"


def _http(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def serve(ready: Connection) -> None:
    """The server's process."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class Stream:
    """One request, and when what happened to it."""

    def __init__(self, engine: OpenAIEngine, request_id: str, tokens: int, how: str, body_bytes: int) -> None:
        self.first = asyncio.Event()
        self.ended = asyncio.Event()
        self.tokens = 0
        messages = [{"role": "user", "content": "x" * body_bytes}]
        body = {"model": "alias", "messages": messages, "max_tokens": tokens, "user": how, "stream": False}
        engine.submit(GenerationRequest(request_id, Dialect.CHAT, orjson.dumps(body)), self._take)

    def _take(self, event: Event) -> None:
        match event:
            case Delta():
                self.tokens += 1
                self.first.set()
            case Finished() | Failed():
                self.first.set()
                self.ended.set()


async def throughput(engine: OpenAIEngine, streams: int, arguments: argparse.Namespace, how: str) -> None:
    """Streams at once, and what their tokens cost."""
    wall, ours = time.perf_counter(), time.process_time()
    running = [Stream(engine, f"s{n}", arguments.tokens, how, arguments.body_bytes) for n in range(streams)]
    for stream in running:
        await stream.ended.wait()
    wall, ours = time.perf_counter() - wall, time.process_time() - ours
    tokens = sum(stream.tokens for stream in running)
    cost = f"our CPU per token {ours / tokens * 1e6:6.1f} us"
    print(f"{how:>6}, {streams:3} streams: {tokens / wall:9,.0f} tokens/s   {cost}")


async def requests(engine: OpenAIEngine, arguments: argparse.Namespace) -> None:
    """Requests of one token, 64 at a time: what a request costs."""
    wall, ours = time.perf_counter(), time.process_time()
    for start in range(0, arguments.requests, 64):
        running = [Stream(engine, f"r{start + n}", 1, "burst", arguments.body_bytes) for n in range(64)]
        for stream in running:
            await stream.ended.wait()
    wall, ours = time.perf_counter() - wall, time.process_time() - ours
    count = -(-arguments.requests // 64) * 64
    print(f"requests of one token: {count / wall:7,.0f} requests/s   our CPU per request {ours / count * 1e6:6.0f} us")


async def cancellation(engine: OpenAIEngine, times: int) -> None:
    """From abort to the moment the server sees the connection closed."""
    delays = []
    for number in range(times):
        stream = Stream(engine, f"c{number}", 10_000, "paced", 100)
        await stream.first.wait()
        aborted_at = time.monotonic()
        engine.abort(f"c{number}")
        await stream.ended.wait()
        await asyncio.sleep(0.01)
        _, body = await engine._upstreams[0]._ask("/gone")
        delays.append((orjson.loads(body)[-1] - aborted_at) * 1e3)
    print(f"cancelled: the server saw it after {statistics.median(delays):.2f} ms, at most {max(delays):.2f} ms")


def pure_parts() -> None:
    """The rewriting of a large body, and the reading of a large page."""
    message = {"role": "user", "content": 'It said "x" and\n went on. ' * 8000}
    body = orjson.dumps({"stream": False, "messages": [message], "model": "alias", "ids": [*range(2000)]})
    page = b"".join(b'vllm:latency_seconds_bucket{engine="0",le="%d",model_name="m"} 12.0\n' % n for n in range(2000))
    page += b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
    names = KINDS[0].page
    assert names is not None
    for name, work in (
        (f"rewrite {len(body):,} bytes", lambda: rewrite(body, {"stream": True, "model": "m"})),
        (f"append to {len(body):,} bytes", lambda: append(body, {"x": 1})),
        ("(orjson reads it)", lambda: orjson.loads(body)),
        (f"read a page of {len(page):,} bytes", lambda: read_page(page, names)),
    ):
        began = time.perf_counter()
        for _ in range(50):
            work()
        print(f"{name}: {(time.perf_counter() - began) / 50 * 1e6:,.0f} us")


async def run(arguments: argparse.Namespace, port: int) -> None:
    """Measures everything `--repeat` times."""
    options = UpstreamOptions(upstream=(f"http://127.0.0.1:{port}",), upstream_poll_s=60.0)
    engine = OpenAIEngine("m", options, MonotonicClock(), Random(1))
    await engine.start()
    for _ in range(arguments.repeat):
        for how in ("each", "burst", "paced"):
            for streams in STREAMS:
                await throughput(engine, streams, arguments, how)
        await requests(engine, arguments)
        await cancellation(engine, 20)
    await engine.close()


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--body-bytes", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    pure_parts()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    asyncio.run(run(arguments, ours.recv()))
    server.terminate()


if __name__ == "__main__":
    main()
