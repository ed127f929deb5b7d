"""lbcore: a scheduler, a gateway, and workers with the simulated engine, all with what a user gets by default."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench.dataplane.system import MODEL, Fleet, Running, Start, System
from bench.dataplane.systems.launch import Process, Processes, children, free_port, running

_FREE_PROMPTS = (
    "--sim-prefill-tokens-per-s",
    "1e9",
    "--sim-token-budget",
    "1000000",
    "--sim-kv-blocks",
    "1000000",
    "--sim-block-size",
    "4096",
    "--max-queued-requests",
    "100000",
)
"""The rivals' workers take no time for prompts and refuse nobody; so these do not either."""


def _script(name: str) -> Path:
    return Path(sys.executable).with_name(name)


async def _version(folder: Path) -> str | None:
    return importlib.metadata.version("lbcore") if _script("lb-gateway").exists() else None


async def _install(folder: Path) -> None:
    if not _script("lb-gateway").exists():
        raise RuntimeError("lb-gateway does not stand beside this Python: make install")


async def _field(processes: Processes, process: Process, name: str) -> str:
    """A field of the line with which a process says that it is ready."""
    found: list[str] = []

    async def look() -> bool:
        lines = process.log.read_text(errors="replace").splitlines()
        ready = [json.loads(line) for line in lines if '"event":"ready"' in line and line.endswith("}")]
        found.extend(str(line[name]) for line in ready)
        return bool(found)

    await processes.until(look, f"'ready' of {process.name}", 60)
    return found[0]


async def _registered(processes: Processes, workers: list[Process]) -> None:
    async def look() -> bool:
        return all('"event":"registered"' in worker.log.read_text(errors="replace") for worker in workers)

    await processes.until(look, "the registration of all workers", 60)


def _start(processes_count: int) -> Callable[[Path], Start]:
    def bind(folder: Path) -> Start:
        @asynccontextmanager
        async def start(fleet: Fleet) -> AsyncIterator[Running]:
            async with running(folder / "ours") as processes:
                scheduler = await processes.start(
                    "scheduler", _script("lb-scheduler"), "--port", "0", "--metrics-port", "0"
                )
                address = await _field(processes, scheduler, "grpc")
                workers = [
                    await processes.start(f"worker-{number}", _script("lb-worker"), *_worker_words(fleet, address))
                    for number in range(fleet.workers)
                ]
                extra = ("--processes", str(processes_count)) if processes_count > 1 else ()
                port = free_port()
                words = ("--scheduler", address, "--port", str(port), *extra)
                gateway = await processes.start("gateway", _script("lb-gateway"), *words)
                await _registered(processes, workers)
                url = f"http://127.0.0.1:{port}"
                await processes.serving(url)
                layer = {"gateway": (gateway.pid, *children(gateway.pid)), "scheduler": (scheduler.pid,)}
                flags = " ".join(("lb-scheduler; lb-gateway", *extra))
                yield Running(url, layer, tuple(worker.pid for worker in workers), flags)

        return start

    return bind


def _worker_words(fleet: Fleet, scheduler: str) -> tuple[str, ...]:
    stamp = ("--sim-stamp",) if fleet.stamp else ()
    pace = ("--sim-step-ms", f"{fleet.step_ms:g}", "--sim-max-num-seqs", str(fleet.max_num_seqs))
    return ("--model", MODEL, "--engine", "sim", "--scheduler", scheduler, *pace, *stamp, *_FREE_PROMPTS)


SYSTEM = System("ours", "ours", _version, _install, _start(1))
SYSTEM_2 = System("ours_2", "ours", _version, _install, _start(2))
