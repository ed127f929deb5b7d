"""Real processes to be hurt: a scheduler, a gateway, workers on ports of their own, and a crowd that asks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.crowd import Ask, Crowd, Fate
from tests.e2e.conftest import System
from tests.e2e.test_life import free_port
from tools.processes import Process

SIM = ("--engine", "sim", "--model", "sim", "--sim-step-ms", "20")
DEMO = ("--model", "demo", "--llamacpp-n-parallel", "8")


@dataclass
class Fleet:
    """Workers on ports of their own, behind a scheduler and a gateway."""

    system: System
    options: tuple[str, ...]
    crowd: Crowd
    scheduler: Process
    workers: dict[str, Process] = field(default_factory=dict)
    """By port."""

    async def start(self, port: str) -> None:
        self.workers[port] = await self.system.start_worker(*self.options, "--port", port)

    async def restart_scheduler(self) -> None:
        """On the port of the one that was killed."""
        port = self.system.scheduler_address.rpartition(":")[2]
        self.scheduler = await self.system.start_scheduler("--port", port)

    @asynccontextmanager
    async def hurt(self, asks: list[Ask], begun: int, *, stream: bool = True) -> AsyncIterator[Process]:
        """For a `with` block that hurts a worker under so many answers; at its end all of them are there, word for
        word, and some went elsewhere."""
        expected = await self.crowd.learn(asks)
        self.crowd.first_tokens = 0
        running = asyncio.ensure_future(self.crowd.all(asks, expected))
        if stream:
            await under_way(self.crowd, begun)
        else:
            # Of a whole answer nobody outside knows when it begins; a story takes two seconds.
            await asyncio.sleep(1.0)
        victim = next(iter(self.workers.values()))
        yield victim
        await running
        assert self.crowd.fates == {Fate.SAVED: len(asks)}, self.crowd.told[:5]
        assert await self.lost_attempts() > 0, "nobody was hurt"

    async def lost_attempts(self) -> float:
        """Attempts at workers that failed, as the gateway counts them."""
        return await self._sum(f"{self.system.gateway_url}/metrics", ("lb_gateway_failed_attempts_total{",))

    async def credit(self) -> float:
        """What the scheduler still counts as under way."""
        names = (
            "lb_scheduler_worker_credit_requests",
            "lb_scheduler_worker_queued_requests",
            "lb_scheduler_worker_running_requests",
        )
        return await self._sum(f"http://{self.system.scheduler_metrics}/metrics", names)

    async def _sum(self, url: str, names: tuple[str, ...]) -> float:
        async with aiohttp.ClientSession() as http, http.get(url) as page:
            lines = (await page.text()).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(names))

    async def quiet(self, within_s: float = 10.0) -> None:
        """Returns once nothing counts as under way any more."""
        async with asyncio.timeout(within_s):
            while await self.credit():
                await asyncio.sleep(0.05)


@asynccontextmanager
async def fleet(count: int, *options: str, gateway: tuple[str, ...] = ()) -> AsyncIterator[Fleet]:
    async with System() as system:
        scheduler = await system.start_scheduler("--port", str(free_port()))
        await system.start_gateway(*gateway)
        one = Fleet(system, options, Crowd(system.gateway_url), scheduler)
        await asyncio.gather(*(one.start(str(free_port())) for _ in range(count)))
        await system.models({options[options.index("--model") + 1]})
        yield one


def stories(count: int, tokens: int = 100, *, stream: bool = True) -> list[Ask]:
    return [Ask("sim", f"Tell me story {number}.", tokens, stream) for number in range(count)]


async def under_way(crowd: Crowd, count: int) -> None:
    """Returns once so many answers have begun."""
    async with asyncio.timeout(20):
        while crowd.first_tokens < count:
            await asyncio.sleep(0.01)
