"""llama.cpp's server in this process: what it is told when it loads a model, and what it is asked beside requests."""

from __future__ import annotations

import asyncio
import http.client
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
from worker.engines.llamacpp.gguf import GgufHead

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
SPIN_COUNT = 100
"""How often a compute thread looks for its next work before it sleeps. libgomp's own number is 300,000, some 4 ms, and
each of the hundreds of barriers of a step costs that as soon as anything else runs on the same cores. Two threads on
two cores that others used too made of a 65M model, in one stream: 1 token/s with 300,000, 74 with 1,000, 141 with 100,
151 with 0. A machine of many cores of its own would pay for 0 in wake-ups."""

MAX_DEFAULT_CONTEXT = 8192
"""Tokens of context that a sequence gets unless told otherwise. Models are trained for 128k and more by now, and every
sequence has its cache reserved: at 128 KiB a token, as an 8B model has, 8 of 8,192 are 8 GiB, 8 of 128k are 128 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppOptions:
    """The options of the embedded engine."""

    n_ctx: int = option(
        0,
        help="longest prompt plus answer, in tokens; 0 takes what the model was trained for, at most 8192",
        check=at_least(0),
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
        # Its loop answers this, so its loop runs: destroyed before that, it would wait for its end for ever.
        self.context_length: int = self._ask("/slots")[0]["n_ctx"]
        capabilities = self._ask("/props").get("chat_template_caps", {})
        self.template_has_tools = bool(capabilities.get("supports_tools"))

    @classmethod
    async def launch(cls, model: Path, head: GgufHead, options: LlamaCppOptions) -> LlamaCppServer:
        """Loads the model. Raises ConfigError, in one line."""
        trained = head.context_length
        if trained and options.n_ctx > trained:
            raise ConfigError(f"--llamacpp-n-ctx: the model was trained for {trained} tokens, not {options.n_ctx}")
        wanted = replace(
            options,
            n_ctx=options.n_ctx or min(trained or MAX_DEFAULT_CONTEXT, MAX_DEFAULT_CONTEXT),
            n_batch=options.n_batch or MAX_BATCH,
            chat_template=_template(options.chat_template),
        )
        server = await asyncio.to_thread(cls._load, model, wanted)
        if not options.n_batch:
            batch = await asyncio.to_thread(server._measure_batch)
            if batch < MAX_BATCH:
                await server.close()
                server = await asyncio.to_thread(cls._load, model, replace(wanted, n_batch=batch))
        return server

    async def count_tokens(self, prompts: Iterable[str | list[int]]) -> int:
        """The tokens of these prompts, as llama.cpp will count them. Raises OSError."""
        return await asyncio.to_thread(lambda: sum(map(self._count, prompts)))

    async def count_text(self, text: str) -> int:
        """The tokens of a text that stands behind others. Raises OSError."""
        return await asyncio.to_thread(self._count, text, False)

    async def close(self) -> None:
        """Unloads the model; returns when its threads have ended."""
        holder, self._native = [self._native], None
        # The last reference must go in that thread: the destructor waits for llama.cpp's own threads.
        await asyncio.to_thread(holder.clear)

    @classmethod
    def _load(cls, model: Path, options: LlamaCppOptions) -> LlamaCppServer:
        api_key = secrets.token_urlsafe(32)
        return cls(_start_native(model, options, api_key), api_key)

    def _measure_batch(self) -> int:
        """How many prompt tokens fit the time of a step."""
        batch = MIN_BATCH
        for tokens in PROBE_TOKENS:
            prompt = [token % 7 for token in range(min(tokens, self.context_length // 2))]
            timings = self._ask("/completion", {"prompt": prompt, "n_predict": 1, "cache_prompt": False})["timings"]
            fits = STEP_BUDGET_S * 1000 * timings["prompt_n"] / max(timings["prompt_ms"], 1e-3)
            batch = max(MIN_BATCH, min(MAX_BATCH, int(fits) // 16 * 16))
            if fits < tokens:
                break
        return batch

    def _count(self, prompt: str | list[int], is_first: bool = True) -> int:
        if isinstance(prompt, list):
            return len(prompt)
        asked = {"content": prompt, "add_special": is_first, "parse_special": True}
        return len(self._ask("/tokenize", asked)["tokens"])

    def _ask(self, path: str, body: object = None) -> Any:
        """One question that is answered in one JSON value. Blocks; raises OSError."""
        connection = http.client.HTTPConnection(self.host, self.port)
        try:
            headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
            connection.request(
                "GET" if body is None else "POST", path, None if body is None else orjson.dumps(body), headers
            )
            answer = connection.getresponse()
            if answer.status != 200:
                raise ConnectionError(f"status {answer.status} for {path}")
            return orjson.loads(answer.read())
        except (http.client.HTTPException, orjson.JSONDecodeError) as error:
            raise ConnectionError(repr(error)) from error
        finally:
            connection.close()


def _template(text_or_file: str) -> str:
    try:
        if text_or_file and "{" not in text_or_file:
            return Path(text_or_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--llamacpp-chat-template: {text_or_file} cannot be read: {error}") from None
    return text_or_file


def _default_threads(model: Path) -> int:
    if model.stat().st_size < SMALL_MODEL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
