"""What the benchmark needs of a system under test: where it comes from, how it is started, which processes it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

MODEL = "sim"
"""The model name that every worker serves and every request asks for."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The simulated workers that a system is put in front of."""

    workers: int = 2
    step_ms: float = 0.0
    """Time of a decoding step; 0 answers as fast as the worker can."""
    stamp: bool = False
    """Whether each token's text is the worker's CLOCK_MONOTONIC in nanoseconds and a space, taken as it is sent."""
    max_num_seqs: int = 1024
    """Streams that one worker decodes at once."""


@dataclass(frozen=True, slots=True)
class Running:
    """A system that serves."""

    url: str
    """Base URL without /v1: POST {url}/v1/chat/completions works when this exists."""
    layer: Mapping[str, tuple[int, ...]]
    """Process ids of the layer itself, by what they are: gateway and scheduler, or router, or the program's name."""
    workers: tuple[int, ...]
    """Process ids of the simulated workers."""
    flags: str
    """The commands of the layer, as one would type them, without paths and ports."""
    more_urls: tuple[str, ...] = ()
    """Where else the same can be asked: clients of streams spread over all."""


Start = Callable[[Fleet], AbstractAsyncContextManager[Running]]


@dataclass(frozen=True, slots=True)
class System:
    """A row of the comparison."""

    name: str
    kind: str
    """"ours", "rust", "python" or "proxy" (a plain HTTP proxy that knows nothing of models)."""
    version: Callable[[Path], Awaitable[str | None]]
    """The installed version, or None when it is not installed. The path is the folder that `install` filled."""
    install: Callable[[Path], Awaitable[None]]
    """Installs it under a folder of its own, from PyPI or Debian. Raises RuntimeError with the tail of what failed."""
    start: Callable[[Path], Start]
    """How to start it from that folder. Leaving the context ends every process it started, and only those."""
