"""nginx as a plain reverse proxy with one worker process."""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.dataplane.system import Fleet, Running, Start, System
from bench.dataplane.systems.launch import capture, children, free_port, require_program, running, start_workers

_CONFIG = """\
user {user};
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log stderr warn;
daemon off;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  client_max_body_size 64m;
  client_body_buffer_size 2m;
  keepalive_requests 1000000;
  tcp_nodelay on;
  upstream workers {{
{servers}
    keepalive 4096;
    keepalive_requests 1000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://workers;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


async def _version(folder: Path) -> str | None:
    try:
        program = require_program("nginx", "nginx")
    except RuntimeError:
        return None
    return (await capture(program, "-v")).strip().rpartition("/")[2]


async def _install(folder: Path) -> None:
    require_program("nginx", "nginx")


def _start(folder: Path) -> Start:
    @asynccontextmanager
    async def start(fleet: Fleet) -> AsyncIterator[Running]:
        program = require_program("nginx", "nginx")
        async with running(folder / "nginx") as processes:
            workers = await start_workers(processes, fleet)
            port = free_port()
            servers = "\n".join(f"    server {worker.address};" for worker in workers)
            config = processes.folder / "nginx.conf"
            names = {"user": getpass.getuser(), "folder": processes.folder, "servers": servers, "port": port}
            config.write_text(_CONFIG.format(**names))
            nginx = await processes.start("nginx", program, "-c", config, "-p", processes.folder)
            url = f"http://127.0.0.1:{port}"
            await processes.serving(url)
            layer = {"nginx": (nginx.pid, *children(nginx.pid))}
            flags = "nginx: worker_processes 1, upstream keepalive, proxy_buffering off, no access log"
            yield Running(url, layer, tuple(worker.pid for worker in workers), flags)

    return start


SYSTEM = System("nginx", "proxy", _version, _install, _start)
