"""llama.cpp's server in this process: what it is told when it loads a model, and what it is asked beside requests."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from lbcore.config import at_least, between, option
from lbcore.errors import ConfigError
from worker.engines.llamacpp_gguf import GgufHead
from worker.engines.llamacpp_sse import AnswerReader, http_request

STEP_BUDGET_S = 0.08
"""How long a step may take: nothing interrupts one, so this bounds how fast a request can be cancelled, and the gap a
long prompt makes in everybody's tokens."""
MIN_BATCH, MAX_BATCH = 64, 2048
"""Prompt tokens in a step. Measured on a CPU: steps of 64 cost 9 % more time per token than steps of 2,048, steps of 32
cost 38 %. llama.cpp's own default is 2,048."""
PROBE_TOKENS = (32, 512)
"""Prompts by which speed is measured: a short one, and a long one where the short one was fast."""

SMALL_MODEL_BYTES = 32 * 2**20
"""A step of a smaller model is so short that handing over between threads costs more than it gains: the demo model of
3 MB makes 9,700 tokens/s in 8 streams on one thread and at most 6,000 on two."""
SPIN_COUNT = 1000
"""How often a compute thread looks for work before it sleeps; libgomp's own number for crowded machines. On idle ones
it takes 300,000, some 4 ms: where anything else runs on the same cores, every one of a step's hundreds of barriers
costs that. Two cores and one more busy process: 8 streams of a 65M model make 12 to 57 tokens/s with it, 180 with 1,000
and 240 with 0, which machines with many cores would pay for in wake-ups."""

_FALLBACK_CONTEXT = 4096
"""For a model file that does not say what it was trained for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppOptions:
    """The options of the embedded engine."""

    n_ctx: int = option(
        0, help="longest prompt plus answer, in tokens; 0 takes what the model was trained for", check=at_least(0)
    )
    n_parallel: int = option(8, help="sequences that run at once, each with a cache of its own", check=between(1, 256))
    n_batch: int = option(
        0,
        help="prompt tokens computed in one step, which nothing interrupts; 0 measures how many take 80 ms",
        check=at_least(0),
    )
    n_threads: int = option(
        0, help="threads that compute; 0 takes one per core, and a single one for a small model", check=at_least(0)
    )
    n_gpu_layers: int = option(-1, help="layers kept on the GPU; -1 takes as many as fit", check=at_least(-1))
    cache_mib: int = option(
        2048, help="memory for prompts that no sequence holds any more, in MiB; 0 keeps none", check=at_least(0)
    )
    seed: int = option(-1, help="seed of requests that bring none; -1 draws one each time", check=at_least(-1))
    chat_template: str = option("", help="Jinja template, or a file with one, instead of the model's own")
    verbosity: int = option(
        0,
        help="llama.cpp's own log on stderr, from 0 for none to 5; it may show parts of requests",
        check=between(0, 5),
    )


class LlamaCppServer:
    """A loaded model behind a loopback port, and the key to it."""

    def __init__(self, native: Any, api_key: str) -> None:
        self._native = native
        self.api_key = api_key
        address = urlsplit(native.listening_address)
        self.host, self.port = str(address.hostname), int(address.port or 0)
        self.context_length = 0
        self.template_has_tools = False

    @classmethod
    async def launch(cls, model: Path, head: GgufHead, options: LlamaCppOptions) -> LlamaCppServer:
        """Loads the model. Raises ConfigError, in one line."""
        length = options.n_ctx or head.context_length or _FALLBACK_CONTEXT
        if head.context_length and length > head.context_length:
            raise ConfigError(f"--llamacpp-n-ctx: the model was trained for {head.context_length} tokens, not {length}")
        template = _template(options.chat_template)
        wanted = replace(options, n_ctx=length, n_batch=options.n_batch or MAX_BATCH, chat_template=template)
        server = await cls._load(model, wanted)
        if not options.n_batch:
            batch = await server._measure_batch()
            if batch < MAX_BATCH:
                await server.close()
                server = await cls._load(model, replace(wanted, n_batch=batch))
        return server

    @classmethod
    async def _load(cls, model: Path, options: LlamaCppOptions) -> LlamaCppServer:
        api_key = secrets.token_urlsafe(32)
        server = cls(await asyncio.to_thread(_start_native, model, options, api_key), api_key)
        # Its loop answers this one, so it runs: a server destroyed before that would wait for its end for ever.
        slots = await server.ask("/slots")
        server.context_length = slots[0]["n_ctx"]
        props = await server.ask("/props")
        server.template_has_tools = bool(props.get("chat_template_caps", {}).get("supports_tools"))
        return server

    async def ask(self, path: str, body: object = None) -> Any:
        """One question that is answered in one JSON value."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(http_request(path, self.api_key, None if body is None else orjson.dumps(body)))
        answer = AnswerReader()
        while data := await reader.read(65536):
            answer.feed(data)
        writer.close()
        return orjson.loads(answer.body)

    async def count_tokens(self, prompts: Iterable[str | list[int]]) -> int:
        """The tokens of these prompts, as llama.cpp will count them."""
        count = 0
        for prompt in prompts:
            if isinstance(prompt, str):
                body = {"content": prompt, "add_special": True, "parse_special": True}
                count += len((await self.ask("/tokenize", body))["tokens"])
            else:
                count += len(prompt)
        return count

    async def close(self) -> None:
        """Unloads the model; returns when its threads have ended."""
        holder, self._native = [self._native], None
        # The last reference must go in that thread: the destructor waits for llama.cpp's own threads.
        await asyncio.to_thread(holder.clear)

    async def _measure_batch(self) -> int:
        """How many prompt tokens fit the time of a step, as a power of two."""
        batch = MIN_BATCH
        for tokens in PROBE_TOKENS:
            prompt = [token % 7 for token in range(min(tokens, self.context_length // 2))]
            body = {"prompt": prompt, "n_predict": 1, "cache_prompt": False}
            timings = (await self.ask("/completion", body))["timings"]
            fits = STEP_BUDGET_S * 1000 * timings["prompt_n"] / max(timings["prompt_ms"], 1e-3)
            batch = 1 << (max(MIN_BATCH, min(MAX_BATCH, int(fits))).bit_length() - 1)
            if fits < tokens:
                break
        return batch


def _template(text_or_file: str) -> str:
    try:
        if text_or_file and "{" not in text_or_file:
            return Path(text_or_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--llamacpp-chat-template: {text_or_file} cannot be read: {error}") from None
    return text_or_file


def _default_threads(model: Path) -> int:
    return 1 if model.stat().st_size < SMALL_MODEL_BYTES else len(os.sched_getaffinity(0))


def _start_native(model: Path, options: LlamaCppOptions, api_key: str) -> Any:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    try:
        import xllamacpp
    except ImportError:
        raise ConfigError("--engine: llamacpp needs the package xllamacpp: pip install 'lbcore[llamacpp]'") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = options.n_ctx * options.n_parallel
    params.n_parallel = options.n_parallel
    params.n_batch = options.n_batch
    params.n_ubatch = min(options.n_batch, 512)
    params.n_gpu_layers = options.n_gpu_layers
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.n_threads or _default_threads(model)
    params.cache_ram_mib = options.cache_mib
    params.chat_template = options.chat_template
    params.verbosity = options.verbosity
    if options.seed >= 0:
        params.sampling.seed = options.seed
    # Fitting to memory would shrink the context that we promise; what does not fit fails, and is then said.
    params.fit_params = False
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [api_key]
    params.ui = False
    params.endpoint_props = False
    params.endpoint_metrics = False
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError):
        raise ConfigError(
            f"--model: llama.cpp cannot load {model}: it is damaged, of a kind it does not know, or too large for the "
            "memory (--llamacpp-verbosity 1 shows its own words)"
        ) from None
