"""LMDeploy's request distributor with its default strategy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.dataplane.system import MODEL, Fleet, Running, Start, System
from bench.dataplane.systems.launch import (
    Processes,
    Worker,
    free_port,
    install_packages,
    installed,
    running,
    start_workers,
)

_VERSION = "0.18.0"
_IMPORTED = (
    "aiohttp",
    "fastapi",
    "mmengine-lite",
    "numpy<2",
    "pillow",
    "psutil",
    "pybase64",
    "pydantic",
    "requests",
    "shortuuid",
    "torch==2.13.0",
    "transformers==5.23.0",
    "uvicorn",
)
"""What the proxy imports, which is most of LMDeploy, without the libraries for GPUs that LMDeploy asks for."""


def _environment(folder: Path) -> Path:
    return folder / "lmdeploy" / "venv"


async def _version(folder: Path) -> str | None:
    return installed(_environment(folder), "lmdeploy")


async def _install(folder: Path) -> None:
    await install_packages(_environment(folder), _IMPORTED, ["--no-deps", f"lmdeploy=={_VERSION}"])


async def _add(processes: Processes, url: str, workers: tuple[Worker, ...]) -> None:
    """Tells the proxy of the workers as soon as it listens."""

    async def look() -> bool:
        try:
            for worker in workers:
                node = {"url": worker.url, "status": {"models": [MODEL], "role": 1}}
                async with session.post(f"{url}/nodes/add", json=node) as response:
                    text = await response.text()
                    if "Added" not in text:
                        raise RuntimeError(f"/nodes/add answered: {text}")
        except aiohttp.ClientError:
            return False
        return True

    async with aiohttp.ClientSession() as session:
        await processes.until(look, "the proxy", 120)


def _start(folder: Path) -> Start:
    @asynccontextmanager
    async def start(fleet: Fleet) -> AsyncIterator[Running]:
        async with running(folder / "lmdeploy") as processes:
            workers = await start_workers(processes, fleet)
            # What an earlier run left in the table would get requests, whatever --disable-cache-status says.
            for left in _environment(folder).glob("lib/python*/site-packages/lmdeploy/serve/proxy/proxy_config.json"):
                left.unlink()
            port = free_port()
            script = _environment(folder) / "bin" / "lmdeploy"
            words = ("serve", "proxy", "--server-name", "127.0.0.1", "--server-port", str(port))
            proxy = await processes.start("proxy", script, *words)
            url = f"http://127.0.0.1:{port}"
            await _add(processes, url, workers)
            await processes.serving(url)
            yield Running(url, {"proxy": (proxy.pid,)}, tuple(worker.pid for worker in workers), "lmdeploy serve proxy")

    return start


SYSTEM = System("lmdeploy", "python", _version, _install, _start)
