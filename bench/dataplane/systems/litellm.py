"""LiteLLM's proxy with one server process, two deployments of one model and its default strategy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.dataplane.system import MODEL, Fleet, Running, Start, System
from bench.dataplane.systems.launch import free_port, install_packages, installed, running, start_workers

_VERSION = "1.106.2"


def _environment(folder: Path) -> Path:
    return folder / "litellm" / "venv"


async def _version(folder: Path) -> str | None:
    return installed(_environment(folder), "litellm")


async def _install(folder: Path) -> None:
    await install_packages(_environment(folder), [f"litellm[proxy]=={_VERSION}"])


def _deployment(url: str) -> dict[str, object]:
    return {
        "model_name": MODEL,
        "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
    }


def _start(folder: Path) -> Start:
    @asynccontextmanager
    async def start(fleet: Fleet) -> AsyncIterator[Running]:
        async with running(folder / "litellm") as processes:
            workers = await start_workers(processes, fleet)
            config = processes.folder / "config.yaml"
            # JSON is YAML too.
            config.write_text(json.dumps({"model_list": [_deployment(worker.url) for worker in workers]}, indent=2))
            port = free_port()
            words = ("--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
            environment = {
                # Otherwise it fetches its list of prices from the network when it starts.
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                # Otherwise it insists on a key; none of the others checks one.
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            }
            script = _environment(folder) / "bin" / "litellm"
            proxy = await processes.start("proxy", script, *words, env=environment)
            url = f"http://127.0.0.1:{port}"
            await processes.serving(url, within_s=150)
            flags = "litellm --config config.yaml --num_workers 1"
            yield Running(url, {"proxy": (proxy.pid,)}, tuple(worker.pid for worker in workers), flags)

    return start


SYSTEM = System("litellm", "python", _version, _install, _start)
