"""Installing and running other people's programs: environments of their own, processes, waiting until they serve."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.dataplane.system import MODEL, Fleet

ROOT = Path(__file__).resolve().parents[3]
"""The repository, from where `python -m bench...` works."""

TAIL_LINES = 12
TAIL_COLUMNS = 300
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Process:
    """A child process whose output goes to a file."""

    name: str
    child: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.child.pid

    def tail(self) -> str:
        """The end of what it printed."""
        return tail(self.log.read_text(errors="replace"))

    def check(self) -> None:
        """Raises RuntimeError with the end of its log when it has ended."""
        if self.child.returncode is not None:
            raise RuntimeError(f"{self.name} ended with status {self.child.returncode}:\n{self.tail()}")

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not end it in time."""
        await self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.child.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            # What it started is only its own to end: those that would stay behind are ended with it.
            for pid in children(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self._signal(signal.SIGKILL)
            await self.child.wait()

    async def _signal(self, number: signal.Signals) -> None:
        if self.child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.child.send_signal(number)


class Processes:
    """The children of one system; all end when `running` is left, last started first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Where logs and configuration files go."""
        self._all: list[Process] = []

    async def start(self, name: str, *argv: str | Path, env: Mapping[str, str] | None = None) -> Process:
        """Starts a program directly, without a shell."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                *map(str, argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                cwd=ROOT,
                env=clean_environment() | dict(env or {}),
                process_group=0,
            )
        process = Process(name, child, log)
        self._all.append(process)
        return process

    def check(self) -> None:
        """Raises RuntimeError when any of them has ended."""
        for process in self._all:
            process.check()

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str, within_s: float) -> None:
        """Polls until the condition holds.

        Raises:
            RuntimeError: a process ended meanwhile, or it took too long; with the end of the logs.
        """
        try:
            async with asyncio.timeout(within_s):
                while not await condition():
                    self.check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            tails = "\n".join(f"--- {process.name}\n{process.tail()}" for process in self._all)
            raise RuntimeError(f"{what} did not come within {within_s:g} s\n{tails}") from None

    async def line(self, process: Process, start: str, within_s: float = START_TIMEOUT_S) -> str:
        """The first line of its log that begins so."""
        found: list[str] = []

        async def look() -> bool:
            lines = process.log.read_text(errors="replace").splitlines(keepends=True)
            found.extend(line.rstrip("\n") for line in lines if line.startswith(start) and line.endswith("\n"))
            return bool(found)

        await self.until(look, f"'{start}' of {process.name}", within_s)
        return found[0]

    async def serving(self, url: str, within_s: float = START_TIMEOUT_S) -> None:
        """Waits until a chat completion works at this base URL."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 1}
        last = "no answer"

        async def ask() -> bool:
            nonlocal last
            try:
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    text = await response.text()
                    last = f"{response.status} {text[:300]}"
                    return response.status == 200 and "choices" in json.loads(text)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                last = repr(error)
                return False

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            try:
                await self.until(ask, "a chat completion", within_s)
            except RuntimeError as error:
                raise RuntimeError(f"{error}\nlast answer: {last}") from None

    async def stop(self) -> None:
        """Ends all."""
        while self._all:
            await self._all.pop().stop()


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Processes]:
    """Processes that end with this context, whatever happens in it. Their logs stay in `folder` when it is an error."""
    raise_file_limit()
    where = _new_folder(folder)
    processes = Processes(where)
    try:
        yield processes
    finally:
        await asyncio.shield(processes.stop())
    shutil.rmtree(where)


def _new_folder(folder: Path) -> Path:
    """A folder for one run: others may measure at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="run-", dir=folder))


def raise_file_limit() -> None:
    """Lets this process and its children open as many files as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def clean_environment() -> dict[str, str]:
    """The environment without what would change our commands, or send local requests through a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LB_")}
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> tuple[int, ...]:
    """The processes that a process has started itself and that still run, without Python's resource tracker."""
    found = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            with contextlib.suppress(OSError):
                if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
    return tuple(sorted(found))


def tail(text: str) -> str:
    """The last lines of a text, without the ends of long ones."""
    return "\n".join(line[:TAIL_COLUMNS] for line in text.splitlines()[-TAIL_LINES:])


async def capture(*argv: str | Path) -> str:
    """What a command prints. Raises RuntimeError with the end of it when it fails."""
    child = await asyncio.create_subprocess_exec(
        *map(str, argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await child.communicate())[0].decode(errors="replace")
    if child.returncode:
        raise RuntimeError(f"{Path(argv[0]).name} ended with status {child.returncode}:\n{tail(output)}")
    return output


async def install_packages(environment: Path, *commands: Sequence[str]) -> None:
    """Makes a virtual environment unless it is there, and runs `pip install` in it with each list of words."""
    if not (environment / "bin" / "pip").exists():
        await capture(sys.executable, "-m", "venv", environment)
    for words in commands:
        await capture(environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *words)


def installed(environment: Path, package: str) -> str | None:
    """The version of a package in a virtual environment, or None."""
    folders = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    found = next(iter(importlib.metadata.distributions(name=package, path=folders)), None)
    return found.version if found else None


def require_program(name: str, package: str) -> str:
    """The path of a program that Debian installs. Raises RuntimeError that says how, when it is missing."""
    # Debian keeps servers where only root's path leads.
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise RuntimeError(f"{name} is not installed: apt-get install {package}")
    return path


def fleet_flags(fleet: Fleet) -> tuple[str, ...]:
    """The fleet as options of `bench.dataplane.http_worker`."""
    stamp = ("--stamp",) if fleet.stamp else ()
    return ("--step-ms", f"{fleet.step_ms:g}", *stamp, "--max-num-seqs", str(fleet.max_num_seqs))


@dataclass(frozen=True, slots=True)
class Worker:
    """A simulated HTTP worker that is ready."""

    pid: int
    address: str
    """HOST:PORT."""

    @property
    def url(self) -> str:
        return f"http://{self.address}"


async def start_workers(
    processes: Processes, fleet: Fleet, module: str = "http_worker", *flags: str
) -> tuple[Worker, ...]:
    """Starts the fleet as HTTP workers and waits until each listens."""
    words = ("-m", f"bench.dataplane.{module}", "--port", "0", *fleet_flags(fleet), *flags)
    started = [await processes.start(f"worker-{number}", sys.executable, *words) for number in range(fleet.workers)]
    return tuple(
        [Worker(process.pid, (await processes.line(process, "ready ")).removeprefix("ready ")) for process in started]
    )
