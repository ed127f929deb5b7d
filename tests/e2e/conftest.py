"""Whole systems of real processes on loopback, one for each test module that asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp
import pytest_asyncio
from openai import AsyncOpenAI

from tools.processes import Process


@dataclass
class System:
    """A scheduler, a gateway, and workers that come and go. Everything ends with the `async with` block."""

    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    scheduler_address: str = ""
    scheduler_metrics: str = ""
    gateway_url: str = ""

    async def start(self, script: str, *args: str, env: dict[str, str] | None = None) -> Process:
        """A process that stops with the system."""
        return await self.stack.enter_async_context(await Process.start(script, *args, env=env))

    async def start_scheduler(self, *args: str) -> Process:
        port = () if "--port" in args else ("--port", "0")
        process = await self.start("lb-scheduler", *port, "--metrics-port", "0", *args)
        ready = await process.line("ready")
        self.scheduler_address, self.scheduler_metrics = str(ready["grpc"]), str(ready["metrics"])
        return process

    async def start_gateway(self, *args: str) -> Process:
        settle = () if "--settle-s" in args else ("--settle-s", "0")
        process = await self.start("lb-gateway", "--port", "0", "--scheduler", self.scheduler_address, *settle, *args)
        self.gateway_url = f"http://{(await process.line('ready'))['http']}"
        return process

    async def start_worker(self, *args: str, env: dict[str, str] | None = None) -> Process:
        """A worker that the scheduler knows by the time this returns."""
        process = await self.start("lb-worker", "--scheduler", self.scheduler_address, *args, env=env)
        await process.line("registered")
        return process

    def openai(self) -> AsyncOpenAI:
        """The official client; without its own retries, which would hide what we do."""
        return AsyncOpenAI(base_url=f"{self.gateway_url}/v1", api_key="none", max_retries=0)

    async def models(self, expected: set[str]) -> None:
        """Waits until the gateway lists exactly these models."""
        async with aiohttp.ClientSession(self.gateway_url) as http, asyncio.timeout(20):
            while True:
                async with http.get("/v1/models") as response:
                    listed = {model["id"] for model in (await response.json())["data"]}
                if listed == expected:
                    return
                await asyncio.sleep(0.02)

    async def __aenter__(self) -> System:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo_system() -> AsyncIterator[System]:
    """Two workers with llama.cpp and the demo model, one with the simulated engine, as model `sim`."""
    async with System() as system:
        await system.start_scheduler()
        await system.start_gateway("--max-body-bytes", "1048576")
        await asyncio.gather(
            system.start_worker("--model", "demo", "--llamacpp-n-parallel", "4"),
            system.start_worker("--model", "demo", "--llamacpp-n-parallel", "4"),
            system.start_worker("--model", "sim", "--engine", "sim", "--sim-step-ms", "1"),
        )
        await system.models({"demo", "sim"})
        yield system
