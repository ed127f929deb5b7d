"""Our processes as children: started by their console scripts, watched by the log lines they print."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Line = dict[str, Any]
"""One log line: `event` and its fields."""


class Ended(Exception):
    """A process ended before it printed what was waited for."""


class Process:
    """One child process. Keeps every log line; ends with the block that started it, by SIGTERM and then SIGKILL."""

    def __init__(self, name: str, child: asyncio.subprocess.Process) -> None:
        self.name = name
        self.child = child
        self.lines: list[Line] = []
        self.errors: list[str] = []
        self._news = asyncio.Condition()
        loop = asyncio.get_running_loop()
        self._readers = [loop.create_task(self._read_lines()), loop.create_task(self._read_errors())]

    @classmethod
    async def start(cls, script: str, *args: str, env: dict[str, str] | None = None) -> Self:
        """Starts a console script that stands beside the running Python."""
        child = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name(script)),
            *args,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(env or {})},
            limit=1 << 24,
        )
        return cls(script, child)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def line(self, event: str, matches: Callable[[Line], bool] = lambda line: True, within_s: float = 60) -> Line:
        """The first line with this event that matches, now or as soon as it is printed.

        Raises:
            Ended: the process ended without it.
            TimeoutError: it took longer than `within_s` seconds.
        """

        def find() -> Line | None:
            return next((line for line in self.lines if line.get("event") == event and matches(line)), None)

        async with asyncio.timeout(within_s), self._news:
            while (found := find()) is None:
                if self._readers[0].done():
                    raise Ended(f"{self.name} ended without '{event}': {' '.join(self.errors[-5:])}")
                await self._news.wait()
        return found

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal if the process still runs."""
        if self.child.returncode is None:
            self.child.send_signal(number)

    async def wait(self, within_s: float = 60) -> int:
        """The exit status, once everything it printed was read."""
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self._readers)
            return await self.child.wait()

    async def stop(self, within_s: float = 20) -> int:
        """SIGTERM, and SIGKILL when that does not end it in time; returns the exit status."""
        self.send_signal(signal.SIGTERM)
        try:
            return await self.wait(within_s)
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            return await self.wait()

    async def _read_lines(self) -> None:
        assert self.child.stdout is not None
        async for raw in self.child.stdout:
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": "", "text": raw.decode(errors="replace")}
            async with self._news:
                self.lines.append(line)
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def _read_errors(self) -> None:
        assert self.child.stderr is not None
        async for raw in self.child.stderr:
            self.errors.append(raw.decode(errors="replace").rstrip())
