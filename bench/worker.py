"""What a request and a token cost a worker's process, without sockets: all between the bytes of messages in and out.

python -m bench.worker [--requests 20000] [--repeat 5] [--profile N]

The simulated engine, unpaced, behind GenerateStream over a context that only hands bytes over; the next message comes
when all answers to the one before are written. CPU time, the best of several rounds; the log goes nowhere, but is made.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import os
import pstats
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import orjson

from lbcore import log
from lbcore.api.v1 import generation_pb2, registry_pb2
from lbcore.clock import MonotonicClock
from lbcore.garbage import look_seldom
from lbcore.types import Ticket
from lbcore.wire.convert import load_to_proto
from worker.engine import EngineLoad
from worker.engines.sim.engine import SimEngine, SimOptions
from worker.load import LoadTracker
from worker.service import GenerationServicer, Sessions

TEXT = "What does a load balancer do, and why would anybody want one? "


@dataclass(frozen=True, slots=True)
class Load:
    """What comes in."""

    name: str
    batch: int
    """Requests in one message."""
    max_tokens: int


LOADS = (
    Load("5 requests in a message, 1 token each", 5, 1),
    Load("1 request in a message, 1 token", 1, 1),
    Load("32 requests in a message, 100 tokens each", 32, 100),
)


def messages(load: Load, requests: int) -> Iterator[bytes]:
    """Requests as they come off the wire, each with a ticket, a deadline and a prompt of its own."""
    body: dict[str, object] = {"model": "sim", "max_tokens": load.max_tokens}
    for begin in range(0, requests, load.batch):
        message = generation_pb2.GenerateStreamRequest()
        for number in range(begin + 1, min(begin + load.batch, requests) + 1):
            body["messages"] = [{"role": "user", "content": f"{number}: {TEXT}"}]
            call = message.calls.add(call_id=number, room=256)
            call.request.request_id = f"req-{number:026}"
            call.request.ticket = number
            call.request.timeout_ms = 600_000
            call.request.chat_completion_json = orjson.dumps(body)
        yield message.SerializeToString()


class Context:
    """A stream's two ends in memory."""

    def __init__(self, sessions: Sessions, incoming: list[bytes], batch: int) -> None:
        self._sessions = sessions
        self._incoming = iter(incoming)
        self._batch = batch
        self._expected = 0
        self._answered = asyncio.Event()
        self._answered.set()
        self.messages_out = 0
        self.bytes_out = 0

    async def read(self) -> Any:
        await self._answered.wait()
        data = next(self._incoming, None)
        if data is None:
            return grpc.aio.EOF
        self._answered.clear()
        message = generation_pb2.GenerateStreamRequest.FromString(data)
        self._expected += len(message.calls)
        return message

    async def write(self, message: generation_pb2.GenerateStreamResponse) -> None:
        self.bytes_out += len(message.SerializeToString())
        self.messages_out += 1
        # gRPC would come back in a later turn of the event loop.
        await asyncio.sleep(0)
        if self._sessions.ends["OK"] == self._expected:
            self._answered.set()


async def serve(load: Load, incoming: list[bytes], requests: int, profile: cProfile.Profile | None) -> str:
    """All requests through one stream; says what one took."""
    engine = SimEngine(SimOptions(step_ms=0), MonotonicClock())
    await engine.start()
    tracker = LoadTracker()
    news = asyncio.Event()
    sessions = Sessions(engine, tracker, 1000, news.set, MonotonicClock())
    context: Any = Context(sessions, incoming, load.batch)
    if profile is not None:
        profile.enable()
    began = time.process_time()
    await GenerationServicer(sessions).GenerateStream(context, context)
    cpu_s = time.process_time() - began
    if profile is not None:
        profile.disable()
    await engine.close()
    assert sessions.ends["OK"] == requests, sessions.ends
    written = context.messages_out / len(incoming)
    report = f"{cpu_s / requests * 1e6:7.2f} us per request"
    if load.max_tokens > 1:
        report += f", {cpu_s / requests / load.max_tokens * 1e6:5.2f} us per token"
    return f"{report}, {written:.2f} messages out per message in, {context.bytes_out / requests:.0f} bytes per request"


def report(updates: int, rounds: int) -> str:
    """Reports with the ends of so many tickets, each acknowledged before the next."""
    tracker = LoadTracker()
    engine = EngineLoad(10, 20, 3000.0, 4.5)
    ticket = 0
    cpu_s = 0.0
    for _ in range(rounds):
        for _ in range(updates):
            ticket += 1
            tracker.refused(Ticket(ticket))
        began = time.process_time()
        made = tracker.report(engine, 0.0)
        registry_pb2.ConnectRequest(load_report=load_to_proto(made)).SerializeToString()
        tracker.acknowledged(made.sequence)
        cpu_s += time.process_time() - began
    return f"{cpu_s / rounds * 1e6:7.2f} us per report, {cpu_s / rounds / updates * 1e6:5.2f} us per update"


def best(measure: Callable[[], str], repeat: int) -> str:
    """The least of several rounds; what a line begins with decides."""
    lines = []
    for _ in range(repeat):
        gc.collect()
        lines.append(measure())
    return min(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", type=int, metavar="N", help="show where the time goes under the Nth load, from 1")
    options = parser.parse_args()
    look_seldom()
    with Path(os.devnull).open("wb") as nowhere:
        log.setup("lb-worker", stream=nowhere)
        _measure_all(options)


def _measure_all(options: argparse.Namespace) -> None:
    profile = cProfile.Profile() if options.profile else None
    for load in LOADS[options.profile - 1 : options.profile] if profile else LOADS:
        requests = max(load.batch, options.requests // load.max_tokens // load.batch * load.batch)
        incoming = [*messages(load, requests)]

        def measure(load: Load = load, incoming: list[bytes] = incoming, requests: int = requests) -> str:
            return asyncio.run(serve(load, incoming, requests, profile))

        print(f"{load.name}: {best(measure, 1 if profile else options.repeat)}", flush=True)
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)
        return
    for updates in (1, 25):
        rounds = max(1, options.requests // updates)
        line = best(lambda updates=updates, rounds=rounds: report(updates, rounds), options.repeat)  # type: ignore[misc]
        print(f"reports with {updates} ticket updates: {line}", flush=True)


if __name__ == "__main__":
    main()
