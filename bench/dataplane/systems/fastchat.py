"""FastChat: its controller and its OpenAI server, both with their defaults, before workers that speak its protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.dataplane.system import Fleet, Running, Start, System
from bench.dataplane.systems.launch import free_port, install_packages, installed, running, start_workers

_VERSION = "0.2.36"
_IT_WANTS = ("pydantic<2", "fastapi<0.120")
"""With newer ones its streams break off: it writes JSON with arguments that pydantic no longer takes."""


def _environment(folder: Path) -> Path:
    return folder / "fastchat" / "venv"


async def _version(folder: Path) -> str | None:
    return installed(_environment(folder), "fschat")


async def _install(folder: Path) -> None:
    await install_packages(_environment(folder), [f"fschat=={_VERSION}", *_IT_WANTS])


def _start(folder: Path) -> Start:
    @asynccontextmanager
    async def start(fleet: Fleet) -> AsyncIterator[Running]:
        async with running(folder / "fastchat") as processes:
            python = _environment(folder) / "bin" / "python"
            address, port = f"http://127.0.0.1:{(controller_port := free_port())}", free_port()
            words = ("-m", "fastchat.serve.controller", "--host", "127.0.0.1", "--port", str(controller_port))
            # The programs write their logs into a folder of their choice, which is the working directory by default.
            environment = {"LOGDIR": str(processes.folder)}
            controller = await processes.start("fastchat-controller", python, *words, env=environment)
            # Each worker waits for the controller.
            workers = await start_workers(processes, fleet, "fastchat_worker", "--controller", address)
            words = ("-m", "fastchat.serve.openai_api_server", "--host", "127.0.0.1", "--port", str(port))
            where = ("--controller-address", address)
            server = await processes.start("fastchat-server", python, *words, *where, env=environment)
            url = f"http://127.0.0.1:{port}"
            await processes.serving(url)
            layer = {"server": (server.pid,), "controller": (controller.pid,)}
            flags = "python -m fastchat.serve.controller; python -m fastchat.serve.openai_api_server"
            yield Running(url, layer, tuple(worker.pid for worker in workers), flags)

    return start


SYSTEM = System("fastchat", "python", _version, _install, _start)
