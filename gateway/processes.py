"""Several gateway processes on one port: started, restarted and stopped together, with one metrics page.

The kernel spreads connections over them. In a private folder they tell one another their metrics (gateway/siblings.py).
"""

from __future__ import annotations

import fcntl
import multiprocessing
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import structlog

from gateway.merge import merge
from lbcore.errors import ConfigError

log = structlog.get_logger()

_RESTART_PAUSE_S = 1.0
_CONFIG_STATUS = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where one process stands among its siblings."""

    index: int
    count: int
    folder: Path

    @property
    def own_socket(self) -> Path:
        """Where this process tells its metrics."""
        return self.socket_of(self.index)

    @property
    def past_page(self) -> Path:
        """What processes had counted that have died."""
        return self.folder / "past.page"

    def socket_of(self, index: int) -> Path:
        """Where a sibling tells its metrics."""
        return self.folder / f"{index}.sock"

    def page_of(self, index: int) -> Path:
        """The metrics that the process at this index told last."""
        return self.folder / f"{index}.page"

    def keep(self, path: Path, page: str) -> None:
        """Writes a page so that readers see the old one or the new one."""
        new = path.with_name(f"{path.name}.{self.index}.new")
        new.write_text(page)
        new.replace(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others out of `bury` for the moment it takes."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def bury(self) -> None:
        """Adds what the process here told last to what the dead had counted; a new one may take its place then."""
        with self.locked():
            page = self.page_of(self.index)
            self.keep(self.past_page, merge([read(self.past_page)], past=read(page)).decode())
            page.unlink(missing_ok=True)


def read(path: Path) -> str:
    """A page, empty when there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def reserve(host: str, port: int) -> socket.socket:
    """A socket that holds the port for processes that share it; it never listens itself.

    Raises:
        ConfigError: the port is in use or may not be opened.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # Sharing is for siblings only: a port that strangers share is in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            held_address = probe.getsockname()
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(held_address)
    except OSError as error:
        raise ConfigError(f"--port: cannot listen on {host}:{port}: {error.strerror or error}") from error
    return held


def supervise(count: int, child: Callable[[Place], None]) -> int:
    """Runs `child` in `count` processes until SIGTERM or SIGINT, and again when one dies; returns the exit status.

    `child` must be picklable; a child that exits with status 2 cannot start like this, and ends all.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="lb-gateway-") as folder:

        def start(index: int) -> BaseProcess:
            process = spawn.Process(target=child, args=(Place(index, count, Path(folder)),))
            process.start()
            return process

        stopping, wake = socket.socketpair()

        def stop(number: int, frame: FrameType | None) -> None:
            wake.send(b"\0")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        children = [start(index) for index in range(count)]
        status = 0
        while True:
            ready = wait([stopping, *(process.sentinel for process in children)])
            if stopping in ready:
                stopping.recv(1)
                break
            dead = [index for index, process in enumerate(children) if process.sentinel in ready]
            if any(children[index].exitcode == _CONFIG_STATUS for index in dead):
                status = _CONFIG_STATUS
                break
            for index in dead:
                log.error("process_died", index=index, exit_status=children[index].exitcode)
            if wait([stopping], timeout=_RESTART_PAUSE_S):
                break
            for index in dead:
                Place(index, count, Path(folder)).bury()
                children[index] = start(index)
        for process in children:
            process.terminate()
        while left := [process.sentinel for process in children if process.is_alive()]:
            if stopping in wait([stopping, *left]):
                # Told again: theirs to end at once.
                stopping.recv(1)
                for process in children:
                    process.terminate()
        for process in children:
            process.join()
        return status
