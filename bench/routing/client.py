"""Callers of RouteStream, and what a scheduler does for them in a while: figures, or the word that they are none."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc

from bench.dataplane.meter import Meter, Spent
from bench.routing.workers import MODEL, Fleet, Process
from lbcore.api.v1 import routing_pb2
from lbcore.prefix import bytes_of
from lbcore.types import WorkerId
from lbcore.wire.channel import open_channel

TICK_S = 0.002
"""Between two batches of questions that are asked whatever is answered."""
BACKLOG_S = 0.2
"""Of what a fleet can do, so much is asked at once in the beginning, so that a queue stands from there on."""
OVERLOAD = 1.2
"""What is asked of a fleet that is to be full, over what it can do."""


class NoFigures(Exception):
    """What was measured is not what was meant to be."""


def prompt_bytes(blocks: int) -> int:
    """A prompt with so many whole blocks, and some more."""
    return bytes_of(blocks) + 100


def prompt_tokens(blocks: int) -> int:
    """At four bytes each."""
    return max(1, prompt_bytes(blocks) // 4)


def varint(value: int) -> bytes:
    """A length or number as protobuf writes it."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def calls(blocks: int) -> Iterator[bytes]:
    """Encoded `RouteStreamRequest.calls` entries, each of a prompt never seen: the hashes are drawn."""
    facts = routing_pb2.RouteRequest(
        request_id="0123456789abcdef0123456789abcdef",
        model=MODEL,
        prompt_byte_count=prompt_bytes(blocks),
        max_output_token_count=256,
    ).SerializeToString()
    # The hashes come last: packed fixed64 under number 4.
    before = facts + b"\x22" + varint(8 * blocks) if blocks else facts
    request = b"\x12" + varint(len(before) + 8 * blocks) + before
    number = 0
    while True:
        number += 1
        call = b"\x08" + varint(number) + request + os.urandom(8 * blocks)
        yield b"\x0a" + varint(len(call)) + call


class Client:
    """One RouteStream, and counts of what came of its questions."""

    def __init__(self, address: str, workers: Fleet, blocks: int, *, unanswered: int = 0, per_s: float = 0.0) -> None:
        """Keeps so many questions unanswered at all times; or asks so many in a second, whatever is answered."""
        self._address = address
        self._workers = workers
        self._calls = calls(blocks)
        self._prompt_tokens = prompt_tokens(blocks)
        self._unanswered = unanswered
        self._per_s = per_s
        # Calls that wait, and since when.
        self._waiting: dict[int, float] = {}
        self.routed = 0
        self.waited = 0
        """Of those routed."""
        self.waited_s = 0.0
        """All their waits together."""
        self.refused = 0
        self.why = ""
        """Of the last refusal."""
        self.messages = 0

    @property
    def all_went(self) -> bool:
        """Whether no question was refused or had to wait."""
        return not (self.refused or self.waited or self._waiting)

    async def run(self) -> None:
        """Asks until cancelled.

        Raises:
            NoFigures: the scheduler ended the stream.
        """
        async with open_channel(self._address) as channel:
            ask: Any = channel.stream_stream(
                "/lbcore.api.v1.RoutingService/RouteStream",
                request_serializer=None,
                response_deserializer=routing_pb2.RouteStreamResponse.FromString,
            )
            stream = ask()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask_at_pace(stream) if self._per_s else self._ask(stream, self._unanswered))
                while (message := await stream.read()) is not grpc.aio.EOF:
                    answered = self.heard(message, time.monotonic())
                    if answered and not self._per_s:
                        await self._ask(stream, answered)
                raise NoFigures("The scheduler ended the stream.")

    async def _ask(self, stream: Any, questions: int) -> None:
        await stream.write(b"".join(next(self._calls) for _ in range(questions)))

    async def _ask_at_pace(self, stream: Any) -> None:
        start = time.monotonic() - BACKLOG_S
        asked = 0
        while True:
            due = int((time.monotonic() - start) * self._per_s) - asked
            if due:
                await self._ask(stream, due)
                asked += due
            await asyncio.sleep(TICK_S)

    def heard(self, message: routing_pb2.RouteStreamResponse, now: float) -> int:
        """Counts the answers, and hands the requests that got a worker to it. Returns how many questions are done."""
        self.messages += 1
        by_id = self._workers.by_id
        done = 0
        for result in message.results:
            kind = result.WhichOneof("result")
            if kind == "waiting":
                self._waiting[result.call_id] = now
                continue
            done += 1
            since = self._waiting.pop(result.call_id, None)
            if kind == "response":
                response = result.response
                by_id[WorkerId(response.worker.worker_id)].take(response.ticket, self._prompt_tokens, now)
                self.routed += 1
                if since is not None:
                    self.waited += 1
                    self.waited_s += now - since
            else:
                self.refused += 1
                self.why = result.failure.reason
        return done


class Counts(NamedTuple):
    """Of all clients and workers up to a moment."""

    routed: int
    waited: int
    waited_s: float
    refused: int
    messages: int
    reports: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one measurement."""

    routes_per_s: float
    cpu_us_per_route: float
    busy_ratio: float
    batch: float
    """Routes in a message of the scheduler's."""
    reports_per_s: float
    waited_ratio: float
    """Part of the routes that waited before."""
    wait_ms: float
    """Mean of those."""
    neighbour_cores: float
    """Cores taken by what has nothing to do with it."""
    spin_ms: float
    """CPU time of a fixed piece of Python: how fast the machine was."""


async def measure(
    process: Process, workers: Fleet, blocks: int, unanswered: int, seconds: float, streams: int = 1
) -> Figures:
    """Routes to a fleet that has room for all of them, with so many questions unanswered over all streams.

    Raises:
        NoFigures: a request was refused or had to wait, or none was routed.
    """
    share = max(1, unanswered // streams)
    clients = [Client(process.address, workers, blocks, unanswered=share) for _ in range(streams)]
    figures = await _watch(process, workers, clients, max(0.5, seconds / 4), seconds)
    if not all(client.all_went for client in clients):
        raise NoFigures("Requests had to wait: the fleet has no room for what was asked.")
    return figures


async def measure_waiting(process: Process, workers: Fleet, blocks: int, per_s: float, seconds: float) -> Figures:
    """Routes of a fleet that computes `per_s` prompts in a second, and is asked for more.

    Raises:
        NoFigures: a request was refused or did not have to wait, or none was routed.
    """
    clients = [Client(process.address, workers, blocks, per_s=OVERLOAD * per_s)]
    figures = await _watch(process, workers, clients, 1.0, seconds)
    if figures.waited_ratio < 1:
        raise NoFigures(f"{1 - figures.waited_ratio:.1%} of the requests did not wait: the fleet was not full.")
    return figures


async def _watch(
    process: Process, workers: Fleet, clients: Sequence[Client], warm_up_s: float, seconds: float
) -> Figures:
    running = [asyncio.create_task(client.run()) for client in clients]
    try:
        await _unless_ended(running, warm_up_s)
        with Meter({"scheduler": (process.pid,)}).spent() as spent:
            before = _counts(workers, clients)
            await _unless_ended(running, seconds)
            after = _counts(workers, clients)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    # The next measurement begins with idle workers.
    await workers.idle()
    if after.refused:
        why = next(client.why for client in clients if client.why)
        raise NoFigures(f"{after.refused} requests were refused, the last for {why}.")
    return figures_between(before, after, spent)


async def _unless_ended(running: Sequence[asyncio.Task[None]], seconds: float) -> None:
    done, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _counts(workers: Fleet, clients: Sequence[Client]) -> Counts:
    return Counts(
        sum(client.routed for client in clients),
        sum(client.waited for client in clients),
        sum(client.waited_s for client in clients),
        sum(client.refused for client in clients),
        sum(client.messages for client in clients),
        workers.reports,
    )


def figures_between(before: Counts, after: Counts, spent: Spent) -> Figures:
    """What happened from one moment to the other, and what the scheduler spent on it.

    Raises:
        NoFigures: nothing did.
    """
    routes, waited = after.routed - before.routed, after.waited - before.waited
    if not routes:
        raise NoFigures("No request was routed.")
    seconds, cpu_s = spent.wall_s, spent.cpu_s["scheduler"]
    return Figures(
        routes / seconds,
        1e6 * cpu_s / routes,
        cpu_s / seconds,
        routes / max(1, after.messages - before.messages),
        (after.reports - before.reports) / seconds,
        waited / routes,
        1000 * (after.waited_s - before.waited_s) / max(1, waited),
        spent.neighbour_cores,
        spent.spin_ms,
    )
