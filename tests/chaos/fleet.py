"""Real processes to be hurt: a scheduler, a gateway, workers on ports of their own, and a crowd that asks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.crowd import Ask, Crowd
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

    async def credit(self) -> float:
        """What the scheduler still counts as under way."""
        names = (
            "lb_scheduler_worker_credit_requests",
            "lb_scheduler_worker_queued_requests",
            "lb_scheduler_worker_running_requests",
        )
        async with aiohttp.ClientSession() as http, http.get(f"http://{self.system.scheduler_metrics}/metrics") as page:
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
