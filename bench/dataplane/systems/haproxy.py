"""HAProxy as a plain reverse proxy with one thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.dataplane.system import Fleet, Running, Start, System
from bench.dataplane.systems.launch import capture, free_port, require_program, running, start_workers

_CONFIG = """\
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  option http-keep-alive
  option http-no-delay
  http-reuse always
  timeout connect 10s
  timeout client 600s
  timeout server 600s
frontend clients
  bind 127.0.0.1:{port}
  default_backend workers
backend workers
  balance roundrobin
{servers}
"""


async def _version(folder: Path) -> str | None:
    try:
        program = require_program("haproxy", "haproxy")
    except RuntimeError:
        return None
    return (await capture(program, "-v")).split()[2]


async def _install(folder: Path) -> None:
    require_program("haproxy", "haproxy")


def _start(folder: Path) -> Start:
    @asynccontextmanager
    async def start(fleet: Fleet) -> AsyncIterator[Running]:
        program = require_program("haproxy", "haproxy")
        async with running(folder / "haproxy") as processes:
            workers = await start_workers(processes, fleet)
            port = free_port()
            lines = [f"  server worker-{number} {worker.address}" for number, worker in enumerate(workers)]
            config = processes.folder / "haproxy.cfg"
            config.write_text(_CONFIG.format(port=port, servers="\n".join(lines)))
            haproxy = await processes.start("haproxy", program, "-db", "-f", config)
            url = f"http://127.0.0.1:{port}"
            await processes.serving(url)
            flags = "haproxy: nbthread 1, balance roundrobin, http-reuse always, no log"
            yield Running(url, {"haproxy": (haproxy.pid,)}, tuple(worker.pid for worker in workers), flags)

    return start


SYSTEM = System("haproxy", "proxy", _version, _install, _start)
