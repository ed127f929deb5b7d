"""The routing table as others see it: who watches, and what each watcher has not been told yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from lbcore.clock import Clock
from lbcore.pool import WorkerPool
from lbcore.types import Endpoint, WorkerId, WorkerStatus
from lbcore.wire.routing_client import TableStep


class Table:
    """A view of the pool, with changes handed to watchers; bursts of changes reach a slow watcher as one step."""

    def __init__(self, pool: WorkerPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._watchers: set[_Watcher] = set()

    @property
    def watcher_count(self) -> int:
        """How many follow the table."""
        return len(self._watchers)

    def changed(self, worker_id: WorkerId) -> None:
        """A worker came, went, or changed its state."""
        for watcher in self._watchers:
            watcher.news.add(worker_id)
            watcher.wake.set()

    def statuses(self) -> list[WorkerStatus]:
        """All workers, by name."""
        now = self._clock.now()
        return [_status(endpoint, now) for endpoint in self._pool.endpoints()]

    async def watch(self) -> AsyncIterator[TableStep]:
        """The whole table, then each step of it, for ever."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            yield TableStep(True, tuple(self.statuses()), ())
            while True:
                await watcher.wake.wait()
                watcher.wake.clear()
                news, watcher.news = watcher.news, set()
                present = tuple(status for status in self.statuses() if status.spec.worker_id in news)
                here = {status.spec.worker_id for status in present}
                yield TableStep(False, present, tuple(sorted(news - here)))
        finally:
            self._watchers.discard(watcher)


class _Watcher:
    def __init__(self) -> None:
        self.news: set[WorkerId] = set()
        self.wake = asyncio.Event()


def _status(endpoint: Endpoint, now: float) -> WorkerStatus:
    return WorkerStatus(
        endpoint.spec,
        endpoint.state,
        endpoint.load,
        (now - endpoint.reported_at) * 1000,
        endpoint.credit_requests,
        endpoint.credit_tokens,
    )
