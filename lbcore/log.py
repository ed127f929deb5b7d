"""The log of a process: one JSON object per line on stdout, for our own events and for libraries alike.

Events are short constant names, facts are fields: `log.info("worker_joined", worker_id=...)`. Fields whose names
look like secrets never come out; fields that hold what users say come out at debug level only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import BinaryIO, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from lbcore.clock import unix_time_s

Logger = FilteringBoundLogger

LEVELS = ("debug", "info", "warning", "error")
REDACTED = "[redacted]"

# Names like prompt_tokens, token_count and tokens_in_flight are numbers, and end otherwise.
_SECRET = re.compile(r"(^|_)(api_?keys?|authorization|passwords?|passwd|secrets?|credentials?|cookie|token)$")
_SPEECH = re.compile(r"(^|_)(prompts?|messages|body|content|completion)$")

bound = structlog.contextvars.bound_contextvars
"""`with bound(request_id=...):` adds fields to every event of the block, in this task and in those it starts."""


def get_logger() -> Logger:
    """The logger. A component that always has the same fields keeps `get_logger().bind(worker_id=...)`."""
    return cast("Logger", structlog.get_logger())


def setup(process: str, level: str = "info", stream: BinaryIO | None = None) -> None:
    """Sends all events at `level` (one of LEVELS) and above to the stream, stdout by default; libraries' from info on.

    Called once, before the first event of the process.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    output = _Output(stream or sys.stdout.buffer)
    line = _Line(process, output, threshold)
    output.say_lost = lambda lost: line(None, "warning", {"event": "log_lines_lost", "lines": lost})
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, line],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Bridge(line, output)]
    root.setLevel(max(threshold, logging.INFO))


def info_often(event: str, fields: dict[str, str | int | float | None]) -> None:
    """The same as `info`, at a quarter of its price, for an event that every request has.

    Fields must be plain, and must not have names that are kept secret. Lines that belong to one turn of the event loop
    are written at its end, together.
    """
    line = structlog.get_config()["processors"][-1]
    if type(line) is _Line:
        line.often(event, fields)
    else:
        # Not set up, or a test listens.
        structlog.get_logger().info(event, **fields)


class _Line:
    """Renders an event; the last processor."""

    def __init__(self, process: str, output: _Output, threshold: int) -> None:
        self._process = process
        self._output = output
        self._is_info_wanted = threshold <= logging.INFO
        self._second = -1
        self._second_text = ""

    def often(self, event: str, fields: dict[str, str | int | float | None]) -> None:
        """See `info_often`."""
        if not self._is_info_wanted:
            return
        entry = {"timestamp": self._timestamp(), "level": "info", "process": self._process, "event": event, **fields}
        try:
            self._output.soon(orjson.dumps(entry))
        except TypeError:
            self._output.msg(json.dumps(entry, default=str).encode())

    def _timestamp(self) -> str:
        now = unix_time_s()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
        return f"{self._second_text}.{int((now - second) * 1000):03d}Z"

    def __call__(self, _: object, method: str, event: EventDict) -> bytes:
        event = structlog.processors.format_exc_info(None, method, event)
        entry: dict[str, object] = {
            "timestamp": self._timestamp(),
            "level": method,
            "process": self._process,
            "event": event.pop("event", ""),
        }
        speech_too = method != "debug"
        for key, value in event.items():
            entry[f"{key}_" if key in entry else key] = _clean(key, value, speech_too)
        try:
            return orjson.dumps(entry)
        except TypeError:
            # Integers over 64 bits and lone surrogates, which the standard library writes in its own way.
            return json.dumps(entry, default=str).encode()


def _clean(key: str, value: object, speech_too: bool) -> object:
    """The value in JSON's types, without what must not come out. `key` is the name it goes by."""
    secret, speech = _sort(key)
    if secret or (speech and speech_too):
        return REDACTED
    match value:
        case Enum():
            return value.value
        case None | str() | bool() | int() | float():
            return value
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} bytes]"
        case Mapping():
            return {str(inner): _clean(str(inner), item, speech_too) for inner, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean_item(item, speech_too) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            shown = [field.name for field in dataclasses.fields(value) if field.repr]
            return {inner: _clean(inner, getattr(value, inner), speech_too) for inner in shown}
        case _:
            return str(value)


@functools.lru_cache(maxsize=1024)
def _sort(key: str) -> tuple[bool, bool]:
    """Whether a name promises a secret, and whether it promises what users say."""
    name = key.lower().replace("-", "_")
    return bool(_SECRET.search(name)), bool(_SPEECH.search(name))


def _clean_item(item: object, speech_too: bool) -> object:
    """An element of a list; pairs are taken for name and value, as headers and gRPC metadata are."""
    match item:
        case (str() as name, value):
            return [name, _clean(name, value, speech_too)]
        case _:
            return _clean("", item, speech_too)


class _Output:
    """Writes whole lines and flushes each; falls silent for good when nobody reads any more.

    Lines that cannot be written for now, on a full disk or into a full pipe, are lost; how many is said when it works
    again.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: BinaryIO | None = stream
        self._lock = threading.Lock()
        self._soon: list[bytes] = []
        self._lost = 0
        self.say_lost: Callable[[int], bytes] = _nothing
        """Renders how many lines were lost."""

    def soon(self, line: bytes) -> None:
        """Writes a line at the end of this turn of the event loop; at once where there is none."""
        with self._lock:
            self._soon.append(line)
            is_first = len(self._soon) == 1
        if is_first:
            try:
                asyncio.get_running_loop().call_soon(self._write_soon)
            except RuntimeError:
                self._write_soon()

    def _write_soon(self) -> None:
        with self._lock:
            soon, self._soon = self._soon, []
            if soon:
                self._write(soon)

    def msg(self, line: bytes) -> None:
        with self._lock:
            soon, self._soon = self._soon, []
            self._write([*soon, line])

    def _write(self, lines: list[bytes]) -> None:
        stream, count = self._stream, len(lines)
        if stream is None:
            return
        try:
            if self._lost:
                # What a failed write has left in the buffer goes first, or fails again. It may end within a line.
                stream.flush()
                lines = [b"", self.say_lost(self._lost), *lines]
            stream.write(b"\n".join(lines) + b"\n")
            stream.flush()
            self._lost = 0
        except (BrokenPipeError, ValueError):
            self._give_up(stream)
        except OSError:
            self._lost += count

    debug = info = warning = error = critical = msg

    def _give_up(self, stream: BinaryIO) -> None:
        self._stream = None
        if stream is sys.stdout.buffer:
            # Otherwise the interpreter tries to flush the rest when it ends, and complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nothing(lost: int) -> bytes:
    return b""


class _Bridge(logging.Handler):
    """Takes the events of libraries."""

    def __init__(self, line: _Line, output: _Output) -> None:
        super().__init__()
        self._line = line
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        event: EventDict = {"event": record.getMessage(), "logger": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        level = record.levelname.lower()
        self._output.msg(self._line(None, level, event))
