"""What the two routers in Rust share: the vLLM project's is a fork of SGLang's, and their options are the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.dataplane.system import Fleet, Running, Start, System
from bench.dataplane.systems.launch import free_port, install_packages, installed, running, start_workers


@dataclass(frozen=True, slots=True)
class RustRouter:
    """One of them, as PyPI has it."""

    package: str
    """On PyPI; also the folder with its environment."""
    pinned: str
    """The version that is installed."""
    module: str
    """What `python -m` runs."""

    def system(self, policy: str) -> System:
        """It with one of its policies; all else is its default."""

        async def version(folder: Path) -> str | None:
            return installed(self._environment(folder), self.package)

        async def install(folder: Path) -> None:
            await install_packages(self._environment(folder), [f"{self.package}=={self.pinned}"])

        def start(folder: Path) -> Start:
            return lambda fleet: self._run(folder, policy, fleet)

        return System(f"{self.package} {policy}", "rust", version, install, start)

    def _environment(self, folder: Path) -> Path:
        return folder / self.package / "venv"

    @asynccontextmanager
    async def _run(self, folder: Path, policy: str, fleet: Fleet) -> AsyncIterator[Running]:
        async with running(folder / self.package / policy) as processes:
            workers = await start_workers(processes, fleet)
            port = free_port()
            router = await processes.start(
                "router",
                self._environment(folder) / "bin" / "python",
                *("-m", self.module, "--host", "127.0.0.1", "--port", str(port), "--policy", policy),
                *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
                *("--worker-urls", *(worker.url for worker in workers)),
            )
            url = f"http://127.0.0.1:{port}"
            await processes.serving(url)
            flags = f"python -m {self.module} --policy {policy} --worker-urls ..."
            yield Running(url, {"router": (router.pid,)}, tuple(worker.pid for worker in workers), flags)
