"""The routing table as watchers see it: everything first, then every change, bursts as one step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from lbcore.pool import WorkerPool
from lbcore.pool_events import Deregistered, DrainNoticed, Registered
from lbcore.scheduler.table import Table
from lbcore.types import EndpointState, Epoch, WorkerId
from lbcore.wire.routing_client import TableStep
from tests.fakes import ManualClock, settle
from tests.fleet import spec


class Scene:
    """A pool and the table over it, told of every change as the scheduler does."""

    def __init__(self) -> None:
        self._pool = WorkerPool(lease_ttl_s=3, ticket_ttl_s=10)
        self._clock = ManualClock()
        self.table = Table(self._pool, self._clock)

    def join(self, name: str, epoch: int = 1) -> None:
        self._pool.handle(Registered(spec(name, epoch=epoch), 1), self._clock.now())
        self.table.changed(WorkerId(name))

    def drain(self, name: str) -> None:
        self._pool.handle(DrainNoticed(WorkerId(name), Epoch(1)), self._clock.now())
        self.table.changed(WorkerId(name))

    def leave(self, name: str) -> None:
        self._pool.handle(Deregistered(WorkerId(name), Epoch(1)), self._clock.now())
        self.table.changed(WorkerId(name))


async def next_of(steps: AsyncIterator[TableStep]) -> TableStep:
    async with asyncio.timeout(5):
        return await anext(steps)


def names(step: TableStep) -> list[str]:
    return [status.spec.worker_id for status in step.workers]


async def test_a_burst_reaches_a_slow_watcher_as_one_step_with_the_last_word() -> None:
    scene = Scene()
    scene.join("w0")
    steps = scene.table.watch()
    await next_of(steps)
    scene.join("w1")
    scene.join("w2")
    scene.drain("w1")
    scene.leave("w2")
    scene.leave("w0")
    step = await next_of(steps)
    assert not step.snapshot
    assert [(status.spec.worker_id, status.state) for status in step.workers] == [("w1", EndpointState.DRAINING)]
    assert step.removed == ("w0", "w2")


async def test_a_change_between_the_snapshot_and_the_first_step_is_not_lost() -> None:
    scene = Scene()
    steps = scene.table.watch()
    assert names(await next_of(steps)) == []
    scene.join("w0")
    assert names(await next_of(steps)) == ["w0"]


async def test_a_watcher_that_waits_is_woken_by_a_change() -> None:
    scene = Scene()
    steps = scene.table.watch()
    await next_of(steps)
    waiting = asyncio.ensure_future(next_of(steps))
    await settle()
    assert not waiting.done()
    scene.join("w0")
    assert names(await waiting) == ["w0"]


async def test_watchers_do_not_take_each_other_s_news() -> None:
    scene = Scene()
    one, two = scene.table.watch(), scene.table.watch()
    await next_of(one)
    await next_of(two)
    scene.join("w0")
    assert names(await next_of(one)) == ["w0"]
    scene.join("w1")
    assert names(await next_of(one)) == ["w1"]
    assert names(await next_of(two)) == ["w0", "w1"]


async def test_a_watcher_that_stops_is_forgotten() -> None:
    scene = Scene()
    steps = scene.table.watch()
    await next_of(steps)
    assert scene.table.watcher_count == 1
    await steps.aclose()
    assert scene.table.watcher_count == 0
