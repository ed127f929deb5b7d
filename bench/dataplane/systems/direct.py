"""No layer: the client asks the simulated workers. What the others add is measured against this."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.dataplane.system import Fleet, Running, Start, System
from bench.dataplane.systems.launch import running, start_workers


async def _version(folder: Path) -> str | None:
    return "-"


async def _install(folder: Path) -> None:
    """There is nothing to install."""


def _start(folder: Path) -> Start:
    @asynccontextmanager
    async def start(fleet: Fleet) -> AsyncIterator[Running]:
        async with running(folder / "direct") as processes:
            first, *others = workers = await start_workers(processes, fleet)
            for worker in workers:
                await processes.serving(worker.url)
            pids = tuple(worker.pid for worker in workers)
            yield Running(first.url, {}, pids, "", tuple(worker.url for worker in others))

    return start


SYSTEM = System("direct", "proxy", _version, _install, _start)
