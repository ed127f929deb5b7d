"""The systems under test: ours by policy, and other routers before the same engines over HTTP.

A router that speaks HTTP finds each engine behind a gateway and a scheduler of its own, which have this one worker and
nothing to choose: the engine, its batch and its caches are the same processes with the same options.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.dataplane.system import MODEL, System
from bench.dataplane.systems import sglang_router, vllm_router
from bench.dataplane.systems.launch import Process, Processes, free_port, running
from lbcore.simulator.replay import FleetSpec
from lbcore.simulator.worker import EngineSpec
from worker.engines.sim.step_time import plain_step_time
from worker.reporter import COALESCE_S

_READY_S = 60.0
_ALONE = "round_robin"
"""Policy of a fleet of one: such a scheduler holds no request back."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The simulated engines, all alike."""

    workers: int = 4
    step_ms: float = 40.0
    prefill_tokens_per_s: float = 6000.0
    kv_blocks: int = 1024
    block_tokens: int = 64
    max_num_seqs: int = 64
    token_budget: int = 1024

    def idle_ttft_ms(self, prompt_tokens: int) -> float:
        """From a request's arrival at an engine without work to its first token, when the prompt fits one step."""
        return self.step_ms + prompt_tokens * 1000 / self.prefill_tokens_per_s

    def words(self) -> tuple[str, ...]:
        """Options of lb-worker."""
        options = {
            "step-ms": self.step_ms,
            "prefill-tokens-per-s": self.prefill_tokens_per_s,
            "kv-blocks": self.kv_blocks,
            "block-size": self.block_tokens,
            "max-num-seqs": self.max_num_seqs,
            "token-budget": self.token_budget,
        }
        pairs = [word for name, value in options.items() for word in (f"--sim-{name}", f"{value:g}")]
        return ("--engine", "sim", "--model", MODEL, "--max-queued-requests", "100000", *pairs)

    def simulated(self) -> FleetSpec:
        """The same fleet for the simulator, with reports as often as a busy worker makes them."""
        spec = EngineSpec(
            step_time=plain_step_time(self.step_ms, self.prefill_tokens_per_s),
            kv_tokens=self.kv_blocks * self.block_tokens,
            max_num_seqs=self.max_num_seqs,
            token_budget=self.token_budget,
            max_queued_requests=100_000,
        )
        return FleetSpec(workers=self.workers, engine=spec, report_interval_s=COALESCE_S)


@dataclass(frozen=True, slots=True)
class Serving:
    """A system that answers."""

    url: str
    engines: tuple[int, ...]
    """Process ids of the workers."""
    fronts: tuple[int, ...]
    """Those of what makes HTTP servers of single workers; none of ours."""
    layer: tuple[int, ...]
    """Those of what is measured: gateway and scheduler, or the router."""
    metrics: tuple[str, ...]
    """HOST:PORT of each worker's metrics."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the tables."""

    name: str
    policy: str
    """What the simulator plays in its place."""
    start: Callable[[Path, Engine, int], AbstractAsyncContextManager[Serving]]
    """Where files go, the engines, and how many tokens the answers have that are asked until the system serves."""
    rival: System | None = None
    """Whence it is installed; None for ours."""


def _ours(policy: str) -> Contender:
    @asynccontextmanager
    async def start(folder: Path, engine: Engine, greeting: int) -> AsyncIterator[Serving]:
        async with running(folder / "ordering") as processes:
            fleet = await _fleet(processes, engine.workers, policy, engine, "")
            await _serving(processes, fleet.url, greeting)
            yield Serving(fleet.url, fleet.workers, (), (fleet.scheduler, fleet.gateway), fleet.metrics)

    return Contender(f"lbcore {policy}", policy, start)


def _router(package: str, policy: str, simulated: str, system: System) -> Contender:
    module = f"{package.replace('-', '_')}.launch_router"

    @asynccontextmanager
    async def start(folder: Path, engine: Engine, greeting: int) -> AsyncIterator[Serving]:
        async with running(folder / "ordering") as processes:
            alone = [_fleet(processes, 1, _ALONE, engine, f"-{number}") for number in range(engine.workers)]
            fleets = await asyncio.gather(*alone)
            for fleet in fleets:
                await _serving(processes, fleet.url, greeting)
            port = free_port()
            router = await processes.start(
                "router",
                folder / package / "venv" / "bin" / "python",
                *("-m", module, "--host", "127.0.0.1", "--port", str(port), "--policy", policy),
                *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
                *("--worker-urls", *(fleet.url for fleet in fleets)),
            )
            url = f"http://127.0.0.1:{port}"
            await _serving(processes, url, greeting)
            yield Serving(
                url,
                tuple(pid for fleet in fleets for pid in fleet.workers),
                tuple(pid for fleet in fleets for pid in (fleet.scheduler, fleet.gateway)),
                (router.pid,),
                tuple(address for fleet in fleets for address in fleet.metrics),
            )

    return Contender(f"{package} {policy}", simulated, start, system)


@dataclass(frozen=True, slots=True)
class _Fleet:
    url: str
    scheduler: int
    gateway: int
    workers: tuple[int, ...]
    metrics: tuple[str, ...]


async def _fleet(processes: Processes, workers: int, policy: str, engine: Engine, mark: str) -> _Fleet:
    """A scheduler, workers and a gateway that are ready."""
    scheduler = await processes.start(
        f"scheduler{mark}", _script("lb-scheduler"), "--port", "0", "--metrics-port", "0", "--policy", policy
    )
    address = (await _line(processes, scheduler, "ready"))["grpc"]
    words = ("--scheduler", address, *engine.words())
    started = [
        await processes.start(f"worker{mark}-{number}", _script("lb-worker"), *words) for number in range(workers)
    ]
    gateway = await processes.start(f"gateway{mark}", _script("lb-gateway"), "--scheduler", address, "--port", "0")
    for worker in started:
        await _line(processes, worker, "registered")
    metrics = tuple([(await _line(processes, worker, "ready"))["metrics"] for worker in started])
    url = f"http://{(await _line(processes, gateway, 'ready'))['http']}"
    return _Fleet(url, scheduler.pid, gateway.pid, tuple(worker.pid for worker in started), metrics)


async def _serving(processes: Processes, url: str, tokens: int) -> None:
    """Waits until a chat completion of so many tokens works."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": tokens}

    async def ask() -> bool:
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                return response.status == 200 and b'"choices"' in await response.read()
        except aiohttp.ClientError:
            return False

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_READY_S)) as session:
        await processes.until(ask, f"a chat completion at {url}", _READY_S)


async def _line(processes: Processes, process: Process, event: str) -> dict[str, str]:
    """The first line of its log with this event."""
    found: list[dict[str, str]] = []

    async def look() -> bool:
        lines = process.log.read_text(errors="replace").splitlines()
        found.extend(json.loads(line) for line in lines if f'"event":"{event}"' in line and line.endswith("}"))
        return bool(found)

    await processes.until(look, f"'{event}' of {process.name}", _READY_S)
    return found[0]


def _script(name: str) -> Path:
    return Path(sys.executable).with_name(name)


_SGLANG, _VLLM = sglang_router.CACHE_AWARE, vllm_router.CACHE_AWARE
CONTENDERS = {
    contender.name: contender
    for contender in (
        _ours("cost"),
        _router("sglang-router", "cache_aware", "sglang_cache_aware", _SGLANG),
        _ours("round_robin"),
        _ours("sglang_cache_aware"),
        _router("sglang-router", "round_robin", "round_robin", _SGLANG),
        _ours("lmetric"),
        _ours("least_requests"),
        _router("vllm-router", "cache_aware", "sglang_cache_aware", _VLLM),
        _router("sglang-router", "power_of_two", "power_of_two", _SGLANG),
    )
}
"""By name, in the order in which they are measured: each three hold as many processes as the others."""
