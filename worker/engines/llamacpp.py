"""The embedded engine: llama.cpp in this process, through the package xllamacpp.

llama.cpp serves HTTP on a loopback port of its own, with a key that only this process knows; docs/adr says why we go
through it. A request that waits inside llama.cpp cannot be cancelled there, so requests wait here: never more are
inside than it has sequences.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbcore.clock import Clock
from lbcore.config import at_least, between, option
from lbcore.errors import (
    Cancelled,
    ConfigError,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.generation import Failed, GenerationRequest
from lbcore.types import Capacity
from worker.engine import Emit, EngineInfo, EngineLoad
from worker.engines.llamacpp_body import read_body
from worker.engines.llamacpp_call import Call
from worker.engines.llamacpp_gguf import read_gguf
from worker.engines.llamacpp_meter import SpeedMeter
from worker.engines.llamacpp_server import LlamaCppServer

KV_BLOCK_SIZE = 16
"""llama.cpp keeps its cache by the token; blocks of 16, the size most engines use, make its numbers comparable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppOptions:
    """The options of the embedded engine."""

    n_ctx: int = option(0, help="longest prompt plus answer, in tokens; 0 takes what the model was trained for", check=at_least(0))
    n_parallel: int = option(8, help="sequences that run at once, each with a cache of its own", check=between(1, 256))
    n_batch: int = option(
        0,
        help="prompt tokens computed in one step, which nothing interrupts; 0 measures how many take 80 ms",
        check=at_least(0),
    )
    n_threads: int = option(0, help="threads that compute; 0 takes one per core", check=at_least(0))
    n_gpu_layers: int = option(-1, help="layers kept on the GPU; -1 takes as many as fit", check=at_least(-1))
    cache_mib: int = option(
        2048, help="memory for prompts that no sequence holds any more, in MiB; 0 keeps none", check=at_least(0)
    )
    seed: int = option(-1, help="seed of requests that bring none; -1 draws one each time", check=at_least(-1))
    chat_template: str = option("", help="Jinja template, or a file with one, instead of the model's own")
    verbosity: int = option(
        0, help="llama.cpp's own log on stderr: 0 none, 1 errors, up to 5; may show parts of requests", check=between(0, 5)
    )


class LlamaCppEngine:
    """Requests wait here, by priority and then age, and run in llama.cpp.

    A request takes one sequence for each of its choices. One with more choices than there are sequences takes all, and
    llama.cpp runs the rest when some are done.
    """

    def __init__(self, model: Path, options: LlamaCppOptions, clock: Clock) -> None:
        self._model = model
        self._options = options
        self._clock = clock
        self._server: LlamaCppServer | None = None
        self._context_length = 0
        self._meter = SpeedMeter()
        self._calls: dict[str, Call] = {}
        self._waiting: list[tuple[int, int, Call]] = []
        self._serial = 0
        self._free = options.n_parallel
        self._inside: set[Call] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._broken = asyncio.Event()
        self._failure = ""
        self._closed = False

    async def start(self) -> EngineInfo:
        head = await asyncio.to_thread(read_gguf, self._model)
        self._server = await LlamaCppServer.launch(self._model, head, self._options)
        self._context_length = self._server.context_length
        n_parallel = self._options.n_parallel
        return EngineInfo(
            context_length=self._context_length,
            capacity=Capacity(
                max_sequences=n_parallel,
                kv_blocks=n_parallel * self._context_length // KV_BLOCK_SIZE,
                kv_block_size=KV_BLOCK_SIZE,
            ),
        )

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        try:
            self._accept(request, emit)
        except LoadBalancerError as error:
            asyncio.get_running_loop().call_soon(emit, Failed(error))
