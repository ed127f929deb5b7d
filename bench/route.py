"""What a routed request costs a real lb-scheduler: requests per second, and CPU time of its process from the system.

    python -m bench.route [--workers 2,8,64,1000] [--blocks 5,10,100] [--outstanding 64,256] [--policy cost]
    python -m bench.route --memory

Workers register over Connect and report as `worker.reporter` does, on change and at most every 5 ms; what is routed to
one is accepted at once and finishes a while later. One RouteStream keeps a number of questions unanswered; no two
prompts have a block in common. Rates are of a machine that the client and all the workers share with the scheduler;
its CPU time per request is its own, reports included, and 1,000,000 over it is what one core can route.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lbcore import log
from lbcore.api.v1 import routing_pb2
from lbcore.clock import MonotonicClock
from lbcore.prefix import PREFIX_BLOCK_BYTES, bytes_of
from lbcore.types import Capacity, Epoch, ServedModel, Ticket, WorkerId, WorkerSpec
from lbcore.wire.channel import open_channel
from worker import reporter
from worker.engine import EngineLoad
from worker.load import LoadTracker
from worker.reporter import Reporter

MODEL = "sim"
SERVICE_S = 0.05
"""From a request's acceptance to its end."""
SEGMENT_BYTES, BLOCK_BYTES = 315, 11
"""What `lbcore.prefix` says a segment and each of its blocks take."""
KV_BLOCKS, KV_BLOCK_SIZE = 10_000, 16
"""A worker's KV cache: 160,000 tokens, 2,500 units of 256 bytes of prompt."""


class Process:
    """A scheduler of our own, and what the system says of it."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.address = address
        self.pid = process.pid

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def scheduler(*options: str) -> AsyncIterator[Process]:
    """lb-scheduler on free ports, ended on leaving."""
    program = Path(sys.executable).with_name("lb-scheduler")
    command = [str(program), "--port", "0", "--metrics-port", "0", *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = json.loads(await process.stdout.readline())
    draining = asyncio.create_task(process.stdout.read())
    try:
        yield Process(process, line["grpc"])
    finally:
        process.terminate()
        await process.wait()
        draining.cancel()


class IdleEngine:
    """Says the same of itself for ever; the tracker counts the requests."""

    def load(self) -> EngineLoad:
        return EngineLoad(prefill_tokens_per_s=20_000.0, step_time_ms=10.0)


class Worker:
    """A worker's reporting half, and requests that only pass time."""

    def __init__(self, number: int, address: str) -> None:
        self.worker_id = WorkerId(f"10.0.{number // 250}.{number % 250}:8000")
        capacity = Capacity(1024, 4096, KV_BLOCKS, KV_BLOCK_SIZE)
        spec = WorkerSpec(self.worker_id, Epoch(number + 1), self.worker_id, (ServedModel(MODEL),), capacity=capacity)
        self.load = LoadTracker()
        engine: Any = IdleEngine()
        self.reporter = Reporter(
            address,
            spec,
            self.load,
            engine,
            Random(number),
            MonotonicClock(),
            on_drain=lambda deadline: None,
            on_abort=lambda request: None,
        )
        self._running: deque[tuple[float, str]] = deque()

    def take(self, ticket: int, prompt_tokens: int, now: float) -> None:
        key = str(ticket)
        self.load.accepted(key, Ticket(ticket), 0, now)
        self.load.started(key, prompt_tokens, 0, now)
        self._running.append((now + SERVICE_S, key))
        self.reporter.changed()

    def finish_due(self, now: float) -> None:
        running = self._running
        if running and running[0][0] <= now:
            while running and running[0][0] <= now:
                _, key = running.popleft()
                self.load.prefilled(key, now)
                self.load.generated(key, 8)
                self.load.finished(key, now)
            self.reporter.changed()

    @property
    def reports(self) -> int:
        return self.load._sequence


class Fleet:
    """All the workers, registered."""

    def __init__(self, size: int, address: str) -> None:
        self.workers = [Worker(number, address) for number in range(size)]
        self.by_id = {worker.worker_id: worker for worker in self.workers}

    @property
    def reports(self) -> int:
        return sum(worker.reports for worker in self.workers)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                group.create_task(worker.reporter.run())
            while True:
                await asyncio.sleep(0.01)
                now = time.monotonic()
                for worker in self.workers:
                    worker.finish_due(now)

    async def registered(self) -> None:
        while not all(worker.reporter.registered for worker in self.workers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@asynccontextmanager
async def fleet(size: int, address: str) -> AsyncIterator[Fleet]:
    workers = Fleet(size, address)
    running = asyncio.create_task(workers.run())
    await workers.registered()
    try:
        yield workers
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


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
        prompt_byte_count=bytes_of(blocks) + 100,
        max_output_token_count=256,
    ).SerializeToString()
    # The hashes are the last field: packed fixed64 under number 4.
    before = facts + b"\x22" + varint(8 * blocks) if blocks else facts
    request = b"\x12" + varint(len(before) + 8 * blocks) + before
    number = 0
    while True:
        number += 1
        call = b"\x08" + varint(number) + request + os.urandom(8 * blocks)
        yield b"\x0a" + varint(len(call)) + call


class Client:
    """One RouteStream with a number of questions unanswered at all times."""

    def __init__(self, address: str, workers: Fleet, blocks: int, outstanding: int) -> None:
        self._address = address
        self._workers = workers
        self._calls = calls(blocks)
        self._prompt_tokens = max(1, (bytes_of(blocks) + 100) // 4)
        self._outstanding = outstanding
        self.answered = 0
        self.failed = 0
        self.messages = 0

    async def run(self) -> None:
        """Asks until cancelled."""
        async with open_channel(self._address) as channel:
            ask: Any = channel.stream_stream(
                "/lbcore.api.v1.RoutingService/RouteStream",
                request_serializer=None,
                response_deserializer=routing_pb2.RouteStreamResponse.FromString,
            )
            stream = ask()
            await stream.write(b"".join(next(self._calls) for _ in range(self._outstanding)))
            by_id = self._workers.by_id
            while True:
                message = await stream.read()
                now = time.monotonic()
                self.messages += 1
                for result in message.results:
                    if result.HasField("response"):
                        response = result.response
                        by_id[WorkerId(response.worker.worker_id)].take(response.ticket, self._prompt_tokens, now)
                    else:
                        self.failed += 1
                self.answered += len(message.results)
                await stream.write(b"".join(next(self._calls) for _ in message.results))


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one measurement."""

    routes_per_s: float
    cpu_us_per_route: float
    busy_ratio: float
    batch: float
    reports_per_s: float
    failed: int


async def measure(
    process: Process, workers: Fleet, blocks: int, outstanding: int, seconds: float, streams: int = 1
) -> Figures:
    """Warm up for a quarter of the time, then count."""
    share = max(1, outstanding // streams)
    clients = [Client(process.address, workers, blocks, share) for _ in range(streams)]
    running = [asyncio.create_task(client.run()) for client in clients]

    def counts() -> tuple[float, float, int, int, int]:
        answered, messages = sum(c.answered for c in clients), sum(c.messages for c in clients)
        return time.monotonic(), process.cpu_s(), answered, messages, workers.reports

    await asyncio.sleep(seconds / 4)
    before = counts()
    await asyncio.sleep(seconds)
    wall_s, cpu_s, routes, messages, reports = (after - start for after, start in zip(counts(), before, strict=True))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for task in running:
        if not task.cancelled():
            task.result()
    # Until the last tickets have finished, so that the next measurement begins with idle workers.
    await asyncio.sleep(3 * SERVICE_S)
    routes = max(1, routes)
    return Figures(
        routes / wall_s,
        1e6 * cpu_s / routes,
        cpu_s / wall_s,
        routes / max(1, messages),
        reports / wall_s,
        sum(client.failed for client in clients),
    )


async def tables(sizes: list[int], blocks: list[int], outstanding: list[int], seconds: float, policy: str) -> None:
    print(f"{'workers':>7}{'blocks':>7}{'open':>6}{'routes/s':>10}{'CPU us/route':>14}{'on one core/s':>15}", end="")
    print(f"{'busy':>6}{'batch':>7}{'reports/s':>11}{'failed':>8}", flush=True)
    for size in sizes:
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(scheduler("--policy", policy))
            workers = await stack.enter_async_context(fleet(size, process.address))
            for length in blocks:
                for count in outstanding:
                    found = await measure(process, workers, length, count, seconds)
                    print(
                        f"{size:>7}{length:>7}{count:>6}{found.routes_per_s:>10,.0f}{found.cpu_us_per_route:>14.1f}"
                        f"{1e6 / found.cpu_us_per_route:>15,.0f}{found.busy_ratio:>6.0%}{found.batch:>7.1f}"
                        f"{found.reports_per_s:>11,.0f}{found.failed:>8}",
                        flush=True,
                    )


async def memory(requests: int) -> None:
    """Prints how resident memory grows, beside what the prefix index may take by its own account."""
    count = 8
    capacity = KV_BLOCKS * KV_BLOCK_SIZE * 4 // PREFIX_BLOCK_BYTES
    print(f"{count} workers that hold {capacity} units of 256 bytes each, {requests} requests of distinct prompts")
    print(f"{'blocks':>7}{'before MB':>11}{'after MB':>10}{'grown MB':>10}{'index MB':>10}{'other MB':>10}")
    for blocks in (1, 5, 20):
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(scheduler())
            workers = await stack.enter_async_context(fleet(count, process.address))
            await measure(process, workers, 0, 256, 0.5)
            before = process.rss_bytes()
            client = Client(process.address, workers, blocks, 256)
            running = asyncio.create_task(client.run())
            while client.answered < requests and not running.done():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.sleep(3 * SERVICE_S)
            after = process.rss_bytes()
            # So few blocks have one unit each.
            held = min(capacity * count, requests * blocks)
            index = held / blocks * SEGMENT_BYTES + held * BLOCK_BYTES
            figures = (before, after, after - before, index, after - before - index)
            print(f"{blocks:>7} " + "".join(f"{size / 1e6:>10.1f}" for size in figures), flush=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=_numbers, default=[2, 8, 64, 1000])
    parser.add_argument("--blocks", type=_numbers, default=[1, 5, 10, 100])
    parser.add_argument("--outstanding", type=_numbers, default=[64, 256])
    parser.add_argument("--seconds", type=float, default=0.8, help="of each measurement")
    parser.add_argument("--policy", default="cost")
    parser.add_argument(
        "--pause-ms", type=float, default=1000 * reporter.COALESCE_S, help="shortest time between a worker's reports"
    )
    parser.add_argument("--memory", action="store_true", help="resident memory over 100,000 requests instead")
    options = parser.parse_args()
    log.setup("bench", "error")
    reporter.COALESCE_S = options.pause_ms / 1000
    if options.memory:
        asyncio.run(memory(100_000))
        return
    asyncio.run(tables(options.workers, options.blocks, options.outstanding, options.seconds, options.policy))


if __name__ == "__main__":
    main()
