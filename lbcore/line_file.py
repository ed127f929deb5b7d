"""A file that a running process appends lines to, for traces and logs of decisions.

No disk keeps the event loop waiting. What happens to the file is no concern of those whose lines they are: when it
cannot be written any more that is said once, and the lines that come are dropped.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from stat import S_ISREG

import structlog

from lbcore.clock import Clock
from lbcore.errors import ConfigError

log = structlog.get_logger()

FLUSH_S = 1.0
"""The longest time that a line waits to be written."""

MAX_UNWRITTEN_BYTES = 64 * 1024 * 1024
"""A disk that is so far behind will not catch up, and the process needs its memory for other things."""


class LineFile:
    """Whole lines, each appended in one piece: several processes may write to one file.

    Only its owner may read it: lines tell of who asked what.
    """

    def __init__(self, path: str, flag: str) -> None:
        """Raises ConfigError: it cannot be opened. `flag` is the option that names it."""
        self._path = path
        self._lines: list[bytes] = []
        self._size = 0
        self._writing: asyncio.Future[OSError | None] | None = None
        self.is_open = True
        """Whether lines are still taken."""
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if stat.S_ISREG(os.fstat(self._file).st_mode):
                os.fchmod(self._file, 0o600)
            if _is_cut(path):
                # A process that died in the middle of a line would spoil the next one, too.
                self.put(b"\n")
        except OSError as error:
            raise ConfigError(f"{flag}: cannot write {path}: {error.strerror or error}") from error

    def put(self, lines: bytes) -> None:
        """Adds whole lines, each with its end."""
        if not self.is_open:
            return
        self._lines.append(lines)
        self._size += len(lines)
        if self._size > MAX_UNWRITTEN_BYTES:
            self._give_up("the disk is too slow")

    async def keep_writing(self, clock: Clock) -> None:
        """Writes what there is, time and again, until cancelled."""
        while True:
            await clock.sleep_until(clock.now() + FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Writes all that was put before."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        data, self._lines, self._size = b"".join(self._lines), [], 0
        if not data or not self.is_open:
            return
        self._writing = asyncio.get_running_loop().run_in_executor(None, _write, self._file, data)
        self._writing.add_done_callback(self._written)
        await asyncio.wait([self._writing])

    async def close(self) -> None:
        """Writes what is left. Nothing may be put from here on."""
        await self.flush()
        self.is_open = False
        os.close(self._file)

    def _written(self, writing: asyncio.Future[OSError | None]) -> None:
        self._writing = None
        error = writing.result()
        if error is not None:
            self._give_up(error.strerror or str(error))

    def _give_up(self, reason: str) -> None:
        if self.is_open:
            self.is_open = False
            self._lines, self._size = [], 0
            log.error("file_given_up", path=self._path, reason=reason)


def _write(file: int, data: bytes) -> OSError | None:
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        return error
    return None


def _is_cut(path: str) -> bool:
    """Whether the file ends inside a line."""
    if not S_ISREG(os.stat(path).st_mode):
        return False
    with Path(path).open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
