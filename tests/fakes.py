"""Stand-ins for the outside world. Small, honest and shared: write a fake here rather than patch something there."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from lbcore.errors import Cancelled, EngineFailed, LoadBalancerError, WorkerUnreachable
from lbcore.generation import Delta, Event, Failed, Finished, GenerationRequest, Started
from lbcore.types import Capacity
from worker.engine import Emit, EngineInfo, EngineLoad


class ManualClock:
    """A `lbcore.clock.Clock` whose time passes only when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    @property
    def sleeper_count(self) -> int:
        """How many tasks wait for a later moment."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def now(self) -> float:
        return self._now

    async def sleep_until(self, t: float) -> None:
        if t <= self._now:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (t, next(self._order), future))
        await future

    def advance(self, seconds: float) -> None:
        """Moves the time and wakes who is due, earliest moment first. They run once the caller awaits something."""
        self._move_to(self._now + seconds)

    async def elapse(self, seconds: float) -> None:
        """Lets time pass as it would by itself: stops at every sleeper's moment and lets what wakes there run."""
        await settle()
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._move_to(self._sleepers[0][0])
            await settle()
        self._move_to(end)
        await settle()

    def _move_to(self, t: float) -> None:
        self._now = max(self._now, t)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


async def settle(turns: int = 20) -> None:
    """Gives every ready task `turns` turns of the event loop: enough for a chain of that many hand-overs."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Signal:
    """Wakes whoever waits for something to become true; `tell` it whenever that might have happened."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def tell(self, *facts: object) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, holds: Callable[[], object], within_s: float = 10.0) -> None:
        """Returns as soon as `holds()` is true.

        Raises:
            TimeoutError: it did not become true in time.
        """
        async with asyncio.timeout(within_s):
            while not holds():
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter


class ScriptedRequest:
    """A request inside a `ScriptedEngine`: nothing happens to it until a test says so."""

    def __init__(self, request: GenerationRequest, emit: Emit) -> None:
        self.request = request
        self.is_over = False
        self._emit = emit

    def emit(self, event: Event) -> None:
        self.is_over = isinstance(event, (Finished, Failed))
        self._emit(event)

    def start(self, prompt_tokens: int = 10, cached_tokens: int = 0) -> None:
        self.emit(Started(prompt_tokens, cached_tokens))

    def say(self, *texts: str) -> None:
        for text in texts:
            self.emit(Delta(text=text))

    def finish(self, prompt_tokens: int = 10, cached_tokens: int = 0, output_tokens: int = 1) -> None:
        self.emit(Finished(prompt_tokens, cached_tokens, output_tokens))

    def fail(self, error: LoadBalancerError) -> None:
        self.emit(Failed(error))

    def end(self, error: LoadBalancerError) -> None:
        """Fails unless it is over."""
        if not self.is_over:
            self.fail(error)

    def answer(self, *texts: str) -> None:
        """A whole answer at once."""
        self.start()
        self.say(*texts)
        self.finish(output_tokens=len(texts))


class ScriptedEngine:
    """A `worker.engine.Engine` that takes everything and does only what a test makes its requests do.

    Aborted requests end by themselves, as the contract says, unless `is_stubborn`.
    """

    def __init__(self) -> None:
        self.requests: dict[str, ScriptedRequest] = {}
        """Every request ever taken, by the id that the worker gave it."""
        self.aborted: list[str] = []
        self.happened = Signal()
        self.is_stubborn = False
        self.measured = EngineLoad()
        self.info = EngineInfo(4096, Capacity(max_sequences=4))
        self.is_closed = False
        self._failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._untaken: asyncio.Queue[ScriptedRequest] = asyncio.Queue()

    async def next(self) -> ScriptedRequest:
        """The next request in the order of arrival."""
        async with asyncio.timeout(10):
            return await self._untaken.get()

    async def start(self) -> EngineInfo:
        return self.info

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        taken = ScriptedRequest(request, emit)
        self.requests[request.request_id] = taken
        self._untaken.put_nowait(taken)
        self.happened.tell()

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self.happened.tell()
        taken = self.requests[request_id]
        if not self.is_stubborn:
            asyncio.get_running_loop().call_soon(taken.end, Cancelled("The request was aborted."))

    def load(self) -> EngineLoad:
        return self.measured

    def break_down(self, why: str) -> None:
        """Ends the engine for good, and every request in it."""
        for taken in self.requests.values():
            taken.end(EngineFailed(why))
        self._failure.set_result(why)

    async def failed(self) -> str:
        return await self._failure

    async def close(self) -> None:
        self.is_closed = True
        for taken in self.requests.values():
            taken.end(WorkerUnreachable("The engine was closed."))
