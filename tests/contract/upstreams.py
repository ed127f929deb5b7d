"""Real servers for the engine that is somebody else's server, and the engine with its server before it."""

from __future__ import annotations

import asyncio
import socket
import sys
from random import Random
from typing import Any

from lbcore.clock import MonotonicClock
from lbcore.generation import GenerationRequest
from worker import demo
from worker.engine import Emit, EngineInfo, EngineLoad
from worker.engines.openai.engine import OpenAIEngine, UpstreamOptions

KEY = "key-of-the-upstream"


class LlamaCppHttpServer:
    """llama.cpp's server in this process, as an operator would start it: with a key, metrics and slots."""

    def __init__(self, slots: int = 8, n_ctx: int = 1024, *, embeds: bool = False) -> None:
        self._slots = slots
        self._n_ctx = n_ctx
        self._embeds = embeds
        self._native: Any = None

    @property
    def model(self) -> str:
        """What it calls its model."""
        return str(demo.GGUF_PATH)

    async def start(self) -> str:
        """Loads the model; returns the URL."""
        self._native = await asyncio.to_thread(self._load)
        return str(self._native.listening_address)

    async def stop(self) -> None:
        holder, self._native = [self._native], None
        # The last reference must go in that thread: the destructor waits for llama.cpp's own threads.
        await asyncio.to_thread(holder.clear)

    def _load(self) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = self.model
        params.n_ctx = self._n_ctx * self._slots
        params.n_parallel = self._slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = 0
        params.fit_params = False
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [KEY]
        params.ui = False
        params.endpoint_metrics = True
        if self._embeds:
            params.embedding = True
            # With another pooling, inputs of different lengths in one batch spoil each other's vectors in llama.cpp.
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
        return xllamacpp.Server(params)


class VllmHttpServer:
    """vLLM's own server in a process of its own, with the demo model on a CPU."""

    model = "served-by-vllm"

    def __init__(self, arguments: str) -> None:
        self._arguments = arguments.split()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Loads the model, which takes a minute; returns the URL."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = (
            f"--model {demo.HF_PATH} --served-model-name {self.model} --host 127.0.0.1 --port {port} --api-key {KEY}"
        )
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *command.split(),
            *self._arguments,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


class WithUpstream:
    """The engine, and the server behind it, which starts before it and stops after it."""

    def __init__(self, server: LlamaCppHttpServer | VllmHttpServer) -> None:
        self._server = server
        self._engine: OpenAIEngine | None = None

    async def start(self) -> EngineInfo:
        url = await self._server.start()
        options = UpstreamOptions(upstream=(url,), upstream_api_key=KEY)
        self._engine = OpenAIEngine(self._server.model, options, MonotonicClock(), Random(1))
        return await self._engine.start()

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        assert self._engine is not None
        self._engine.submit(request, emit)

    def abort(self, request_id: str) -> None:
        assert self._engine is not None
        self._engine.abort(request_id)

    def load(self) -> EngineLoad:
        assert self._engine is not None
        return self._engine.load()

    async def failed(self) -> str:
        assert self._engine is not None
        return await self._engine.failed()

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()
            await self._server.stop()
