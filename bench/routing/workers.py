"""A scheduler of our own, and made-up workers that register with it, report to it and let time pass.

A worker prefills one prompt after another at the speed that it reports, and each answer ends a while after its prefill.
How many prompts a second a fleet is there for is the caller's to say: that decides whether requests wait.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from bench.dataplane.meter import process_cpu_s
from lbcore.clock import MonotonicClock
from lbcore.cost import prefill_ms
from lbcore.types import Capacity, Epoch, ServedModel, Ticket, WorkerId, WorkerSpec
from worker.engine import EngineLoad
from worker.load import LoadTracker
from worker.reporter import Reporter

MODEL = "sim"
DECODE_S = 0.05
"""From the end of a prompt's prefill to the end of its answer."""
OUTPUT_TOKENS = 8
STEP_MS = 10.0
ATTENTION_RATIO = 2e-5
KV_BLOCKS, KV_BLOCK_SIZE = 10_000, 16
"""A worker's KV cache: 160,000 tokens, 2,500 units of 256 bytes of prompt."""
MAX_TOKENS_PER_S = 9e8
"""Speeds from a thousand million on are no measurements to a scheduler."""
AMPLE_PER_S = 100_000.0
"""Prompts per second that no scheduler routes: a fleet for so many has room for whatever is asked."""


class Process:
    """A scheduler of our own, and what the system says of it."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.address = address
        self.pid = process.pid

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        return process_cpu_s(self.pid)

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


def tokens_per_s(per_s: float, workers: int, prompt_tokens: int) -> float:
    """Prefill speed of each of so many workers that together compute so many prompts in a second."""
    return per_s * prefill_ms(1.0, ATTENTION_RATIO, prompt_tokens, 0.0) / workers


def ample_tokens_per_s(workers: int, prompt_tokens: int) -> float:
    """Prefill speed at which nobody ever waits."""
    return min(MAX_TOKENS_PER_S, tokens_per_s(AMPLE_PER_S, workers, prompt_tokens))


class Engine:
    """Passes time for requests, and tells the tracker what has become of them. Times are of one monotonic clock."""

    def __init__(self, load: LoadTracker, speed: float) -> None:
        """`speed` is in prompt tokens per second."""
        self._load = load
        self._speed = speed
        self._free_at = 0.0
        # When its prefill begins and ends, the request and its tokens; soonest first.
        self._to_begin: deque[tuple[float, float, str, int]] = deque()
        self._to_prefill: deque[tuple[float, str]] = deque()
        self._to_end: deque[tuple[float, str]] = deque()

    def take(self, ticket: int, prompt_tokens: int, now: float) -> None:
        """A request comes in."""
        key = str(ticket)
        self._load.accepted(key, Ticket(ticket), 4 * prompt_tokens, now)
        begins = max(self._free_at, now)
        self._free_at = begins + prefill_ms(1.0 / self._speed, ATTENTION_RATIO, prompt_tokens, 0.0)
        self._to_begin.append((begins, self._free_at, key, prompt_tokens))

    def pass_time(self, now: float) -> bool:
        """Let happen what is due; whether anything was."""
        load = self._load
        happened = False
        # Prompts are computed one after another: the next begins no sooner than the one before it has ended.
        while self._to_begin or self._to_prefill:
            if self._to_prefill:
                ends, key = self._to_prefill[0]
                if ends > now:
                    break
                self._to_prefill.popleft()
                load.prefilled(key, ends)
                self._to_end.append((ends + DECODE_S, key))
            else:
                begins, ends, key, tokens = self._to_begin[0]
                if begins > now:
                    break
                self._to_begin.popleft()
                load.started(key, tokens, 0, begins)
                self._to_prefill.append((ends, key))
            happened = True
        while self._to_end and self._to_end[0][0] <= now:
            ends, key = self._to_end.popleft()
            load.generated(key, OUTPUT_TOKENS)
            load.finished(key, ends)
            happened = True
        return happened

    def load(self) -> EngineLoad:
        """What a report says of the engine; asked for before the tracker is, which is thereby as of now."""
        self.pass_time(time.monotonic())
        return EngineLoad(prefill_tokens_per_s=self._speed, attention_ratio=ATTENTION_RATIO, step_time_ms=STEP_MS)


class Worker:
    """A worker's reporting half before an engine that only passes time."""

    def __init__(self, number: int, address: str, speed: float) -> None:
        self.worker_id = WorkerId(f"10.0.{number // 250}.{number % 250}:8000")
        capacity = Capacity(1024, 4096, KV_BLOCKS, KV_BLOCK_SIZE)
        spec = WorkerSpec(self.worker_id, Epoch(number + 1), self.worker_id, (ServedModel(MODEL),), capacity=capacity)
        self.load = LoadTracker()
        self.engine = Engine(self.load, speed)
        reported: Any = self.engine
        self.reporter = Reporter(
            address,
            spec,
            self.load,
            reported,
            Random(number),
            MonotonicClock(),
            on_drain=lambda deadline: None,
            on_abort=lambda request: None,
        )

    def take(self, ticket: int, prompt_tokens: int, now: float) -> None:
        self.engine.take(ticket, prompt_tokens, now)
        self.reporter.changed()

    def pass_time(self, now: float) -> None:
        if self.engine.pass_time(now):
            self.reporter.changed()

    @property
    def reports(self) -> int:
        return self.load._sequence


class Fleet:
    """All the workers, registered."""

    def __init__(self, size: int, address: str, speed: float) -> None:
        self.workers = [Worker(number, address, speed) for number in range(size)]
        self.by_id = {worker.worker_id: worker for worker in self.workers}

    @property
    def reports(self) -> int:
        return sum(worker.reports for worker in self.workers)

    @property
    def requests(self) -> int:
        """Requests that are at a worker."""
        return sum(worker.load.requests for worker in self.workers)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                group.create_task(worker.reporter.run())
            while True:
                await asyncio.sleep(0.01)
                now = time.monotonic()
                for worker in self.workers:
                    worker.pass_time(now)

    async def registered(self) -> None:
        while not all(worker.reporter.registered for worker in self.workers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def idle(self) -> None:
        """Until every request that came has been answered."""
        while self.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@asynccontextmanager
async def fleet(size: int, address: str, speed: float) -> AsyncIterator[Fleet]:
    """So many workers of this speed, in prompt tokens per second."""
    workers = Fleet(size, address, speed)
    running = asyncio.create_task(workers.run())
    await workers.registered()
    try:
        yield workers
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
