"""Stand-ins for the outside world. Small, honest and shared: write a fake here rather than patch something there."""

from __future__ import annotations

import asyncio
import heapq
import itertools


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
