"""A client for streams and for requests that arrive by chance: one process, a search of the bytes for each token.

python -m bench.dataplane.streams URL [--connections 64] [--tokens 100] [--requests 0] [--seconds 5] [--rate 0]
    [--seed 0] [--run ID] [--first 0] [--whole] [--stamp]

Closed loop: each connection asks again as soon as it has its answer. Open loop (`--rate`): requests arrive as a Poisson
process on the idle ones of a pool of connections, and wait when none is idle; latency counts from the intended arrival,
so that a stalled system cannot slow the clock it is measured by. Prints one line of JSON; wrong answers are counted in
`errors` and leave the exit status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import select
import selectors
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from bench.dataplane.answers import Answer
from bench.dataplane.bodies import Template, template
from bench.dataplane.figures import histogram, poisson_arrivals, summary

_PATIENCE_S = 30
_MAX_ERRORS = 200
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Streams:
    """What the client does."""

    connections: int = 64
    """In an open loop the size of the pool."""
    tokens: int = 100
    requests: int = 0
    """Ends after so many; 0 asks until the time is up."""
    seconds: float = 5.0
    """No request begins later; those under way are answered to their end."""
    rate: float = 0.0
    """Arrivals a second of an open loop; 0 is a closed loop."""
    seed: int = 0
    run: str = "run"
    first: int = 0
    """The numbers of the prompts begin here."""
    whole: bool = False
    """Asks for whole answers, not for streams."""
    stamp: bool = False
    """The tokens are the worker's CLOCK_MONOTONIC: measure how long each was under way."""


class FineSelector(selectors.EpollSelector):
    """epoll that keeps time to the microsecond: epoll itself rounds up to the millisecond, select does not."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            select.select([self.fileno()], [], [], timeout)
        return super().select(0)


class Connection(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, number: int, since_ns: int) -> None:
        """Sends a request; its latency counts from `since_ns`."""
        load = self._client.load
        assert self._transport is not None
        self._answer = Answer(load.tokens, stream=not load.whole, stamp=load.stamp)
        self._since_ns = since_ns
        self._transport.write(self._client.template.request(number))

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        answer, client = self._answer, self._client
        if answer is None:
            return
        had_token = answer.has_token
        is_complete = answer.feed(data)
        if not had_token and answer.has_token:
            client.ttft_ns.append(now_ns - self._since_ns)
        if client.load.stamp:
            client.delays_ns += [now_ns - stamp for stamp in answer.stamps(data)]
        if is_complete:
            self._end(answer, now_ns)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.close()
            self._end(self._answer, time.monotonic_ns())
        else:
            self._client.lost(self)

    def _end(self, answer: Answer, now_ns: int) -> None:
        self._answer = None
        self._client.answered(self, answer, now_ns - self._since_ns)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """Asks, counts and ends."""

    def __init__(self, urls: Sequence[str], load: Streams) -> None:
        self.load = load
        self.template: Template = template(urls[0], load.run, load.tokens, stream=not load.whole)
        self.ttft_ns: list[int] = []
        self.delays_ns: list[int] = []
        self._addresses = cycle((urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80) for url in urls)
        self._loop = asyncio.get_running_loop()
        self._durations_ns: list[int] = []
        self._late_ns: list[int] = []
        self._errors: Counter[str] = Counter()
        self._idle: list[Connection] = []
        self._waiting: deque[int] = deque()
        self._arrivals: list[float] = []
        self._arrived = 0
        self._asked = 0
        self._ended = 0
        self._reconnects = 0
        self._slowly = 0
        self._start_ns = 0
        self._end_ns = 0
        self._is_over = False
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """The whole run, and its figures."""
        load = self.load
        if load.rate:
            self._arrivals = poisson_arrivals(load.rate, load.seconds, load.seed)
        for _ in range(load.connections):
            self._idle.append(await self._connect())
        cpu_s = time.process_time()
        self._start_ns = time.monotonic_ns()
        if load.rate:
            self._arrive()
        else:
            for connection in [self._idle.pop() for _ in range(load.connections)]:
                self._next(connection)
        try:
            async with asyncio.timeout(load.seconds + _PATIENCE_S):
                await self._done.wait()
        except TimeoutError:
            self._errors["unfinished"] += self._asked - self._ended
        self._end_ns = self._end_ns or time.monotonic_ns()
        return self._figures(time.process_time() - cpu_s)

    def answered(self, connection: Connection, answer: Answer, duration_ns: int) -> None:
        """A connection has its answer, or has lost it."""
        self._ended += 1
        self._end_ns = time.monotonic_ns()
        self._slowly += answer.was_read_slowly
        if answer.error is None:
            self._durations_ns.append(duration_ns)
        else:
            self._errors[answer.error] += 1
            self._is_over = self._is_over or self._errors.total() >= _MAX_ERRORS
        if answer.keeps_connection and answer.error != "connection lost":
            self._next(connection)
        else:
            connection.close()
            self._spawn(self._replace)

    def lost(self, connection: Connection) -> None:
        """A connection has ended between two requests."""
        if connection in self._idle:
            self._idle.remove(connection)
            if not self._is_over:
                self._spawn(self._replace)

    def _spawn(self, work: Callable[[], Any]) -> None:
        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self) -> None:
        self._reconnects += 1
        try:
            connection = await self._connect()
        except OSError:
            self._errors["connect"] += 1
            self._is_over = True
            self._check_done()
        else:
            self._next(connection)

    async def _connect(self) -> Connection:
        _, connection = await self._loop.create_connection(lambda: Connection(self), *next(self._addresses))
        return connection

    def _next(self, connection: Connection) -> None:
        """Gives an idle connection something to do."""
        load, now_ns = self.load, time.monotonic_ns()
        if load.rate and self._waiting:
            self._ask(connection, self._waiting.popleft())
            return
        in_time = now_ns - self._start_ns < load.seconds * 1e9
        if not load.rate and in_time and not self._is_over and (not load.requests or self._asked < load.requests):
            self._ask(connection, now_ns)
            return
        self._idle.append(connection)
        self._check_done()

    def _arrive(self) -> None:
        """Takes up what has arrived by now, and waits for the next."""
        now_ns = time.monotonic_ns()
        while self._arrived < len(self._arrivals) and not self._is_over:
            intended_ns = self._start_ns + round(self._arrivals[self._arrived] * 1e9)
            if intended_ns > now_ns:
                self._loop.call_later((intended_ns - now_ns) / 1e9, self._arrive)
                return
            self._arrived += 1
            self._late_ns.append(now_ns - intended_ns)
            if self._idle:
                self._ask(self._idle.pop(), intended_ns)
            else:
                self._waiting.append(intended_ns)
        self._check_done()

    def _ask(self, connection: Connection, since_ns: int) -> None:
        self._asked += 1
        connection.ask(self.load.first + self._asked, since_ns)

    def _check_done(self) -> None:
        more = self._arrived < len(self._arrivals) or self._waiting
        if self._asked == self._ended and (self._is_over or not (more if self.load.rate else self._may_ask())):
            self._done.set()

    def _may_ask(self) -> bool:
        """Whether a connection of a closed loop still is to ask: one that connects anew will find that out itself."""
        return len(self._idle) < self.load.connections

    def _figures(self, cpu_s: float) -> dict[str, Any]:
        load, wall_s, good = self.load, (self._end_ns - self._start_ns) / 1e9, len(self._durations_ns)
        figures: dict[str, Any] = {
            "requests": good,
            "tokens": good * load.tokens,
            "wall_s": wall_s,
            "requests_per_s": good / wall_s,
            "tokens_per_s": good * load.tokens / wall_s,
            "latency_ms": summary(self._durations_ns, 1 / _NS_PER_MS),
            "client_cpu_s": cpu_s,
            "client_cpu_ratio": cpu_s / wall_s,
            "client_loop": type(self._loop).__module__.partition(".")[0],
            "reconnects": self._reconnects,
            "read_slowly": self._slowly,
            "errors": dict(self._errors),
        }
        if not load.whole:
            figures["ttft_ms"] = summary(self.ttft_ns, 1 / _NS_PER_MS)
        if load.stamp:
            figures["delay_ms"] = summary(self.delays_ns, 1 / _NS_PER_MS)
            figures["delay_ms_histogram"] = histogram(delay / _NS_PER_MS for delay in self.delays_ns)
        if load.rate:
            figures["client_late_ms"] = summary(self._late_ns, 1 / _NS_PER_MS)
        return figures


async def run(urls: Sequence[str], load: Streams, within_s: float = 60) -> dict[str, Any]:
    """Runs the client as a child process. Raises RuntimeError when it gives no figures."""
    words = [f"--{field.name}={getattr(load, field.name)}" for field in fields(load) if field.type != "bool"]
    words += [f"--{field.name}" for field in fields(load) if field.type == "bool" and getattr(load, field.name)]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.dataplane.streams", *urls, *words),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(load.seconds + _PATIENCE_S + within_s):
            output, errors = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise RuntimeError(f"the client ended: {errors.decode(errors='replace').strip()[-300:]}")
    return dict(json.loads(output))


def _new_loop(rate: float) -> asyncio.AbstractEventLoop:
    """An open loop needs fine timers; a closed one takes the fastest loop there is."""
    if rate:
        return asyncio.SelectorEventLoop(FineSelector())
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def main() -> None:
    """Reads the command, runs, prints."""
    parser = argparse.ArgumentParser(description="A client for streams; one line of JSON.")
    parser.add_argument("urls", nargs="+")
    for field in fields(Streams):
        if field.type == "bool":
            parser.add_argument(f"--{field.name}", action="store_true")
        else:
            parser.add_argument(f"--{field.name}", default=field.default, type=type(field.default))
    options = vars(parser.parse_args())
    urls, load = options.pop("urls"), Streams(**options)

    async def whole() -> dict[str, Any]:
        return await Client(urls, load).run()

    gc.freeze()
    gc.disable()
    with asyncio.Runner(loop_factory=lambda: _new_loop(load.rate)) as runner:
        print(json.dumps(runner.run(whole())))


if __name__ == "__main__":
    main()
