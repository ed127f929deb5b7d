"""What engine events are worth: two workers with small KV caches, believed by the scheduler's own record or told.

.venv/bin/python -m bench.prefix_modes [--rounds N] [--requests N] [--json FILE]
VLLM_CPU_KVCACHE_SPACE=1 .venv-engines/bin/python -m bench.prefix_modes --engine vllm [...]

Real processes on loopback, in both modes one after the other: engines, a scheduler, a gateway. The engines are
simulated ones, or vLLM on the CPU with random weights, whose time to first token says little on a busy machine. The
same conversations, more of them than one cache holds, in the same order by as many users. Before each request the
scheduler is asked how it would decide, which tells what it believes of each worker; the answer's usage tells what was
true. Ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

import aiohttp
import orjson

from lbcore.client import conversation_bytes
from lbcore.prefix import block_hashes
from lbcore.types import RouteFacts
from lbcore.wire.admin_client import explain_route
from tools.processes import Process
from worker import demo

MODES = ("own record", "events")
SHAPE = {
    "hidden_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "intermediate_size": 960,
    "max_position_embeddings": 4096,
}
"""Of a model of eight million random weights: large enough for prefill to take time that can be told from noise."""
BLOCKS, BLOCK_SIZE = 128, 32
"""Of each KV cache, 4,096 tokens; what 200 requests ask for is three times that."""
VLLM = (
    "-- --enforce-eager --dtype float32 --load-format dummy --max-model-len 4096 --max-num-seqs 8 "
    f"--max-num-batched-tokens 512 --block-size {BLOCK_SIZE} --num-gpu-blocks-override {BLOCKS}"
)
SIM = (
    f"--sim-step-ms 5 --sim-prefill-tokens-per-s 4000 --sim-kv-blocks {BLOCKS} --sim-block-size {BLOCK_SIZE} "
    "--sim-max-num-seqs 8 --sim-token-budget 512"
)
"""Slow enough that what the machine does beside it counts for little."""
WORKERS, USERS = 2, 4
SYSTEM_PROMPTS, CONVERSATIONS = 4, 24
SYSTEM_WORDS, QUESTION_WORDS, ANSWER_WORDS = 160, 25, 25
MAX_TOKENS = 100
_SENTENCE = "a worker holds what it has computed and the scheduler sends the next request to where most of it is"
VOCABULARY = tuple(_SENTENCE.split())


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation."""

    conversation: int
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one request. Tokens, but for the time to the first one in milliseconds."""

    worker: str
    prompt: int
    cached: int
    believed: float
    ttft_ms: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of all requests of one round."""

    mode: str
    requests: int
    cached_ratio: float
    """Of all prompt tokens, those found in a cache."""
    mean_error: float
    """Mean distance between what was believed cached and what was, in tokens."""
    over_ratio: float
    """Tokens believed and not there, of all prompt tokens."""
    under_ratio: float
    """Tokens there and not believed, of all prompt tokens."""
    mean_ttft_ms: float
    median_ttft_ms: float
    busiest_ratio: float
    """Of all requests, those at the worker that had most."""


def conversations(requests: int, seed: int) -> list[Turn]:
    """Turns in the order in which users begin them; those lately active are likelier to go on."""
    rng = Random(seed)

    def text(words: int) -> str:
        return " ".join(rng.choice(VOCABULARY) for _ in range(words))

    systems = [text(SYSTEM_WORDS) for _ in range(SYSTEM_PROMPTS)]
    open_: list[list[dict[str, str]]] = [
        [{"role": "system", "content": rng.choice(systems)}] for _ in range(CONVERSATIONS)
    ]
    lately = [*range(CONVERSATIONS)]
    turns: list[Turn] = []
    for _ in range(requests):
        index = lately.pop(min(int(rng.expovariate(1 / 8)), CONVERSATIONS - 1))
        lately.insert(0, index)
        messages = open_[index]
        messages.append({"role": "user", "content": text(QUESTION_WORDS)})
        turns.append(Turn(index, tuple(messages)))
        messages.append({"role": "assistant", "content": text(ANSWER_WORDS)})
    return turns


def figures(mode: str, seen: Sequence[Seen]) -> Figures:
    """The figures of one round."""
    tokens = sum(one.prompt for one in seen)
    workers = [one.worker for one in seen]
    return Figures(
        mode,
        len(seen),
        sum(one.cached for one in seen) / tokens,
        mean(abs(one.believed - one.cached) for one in seen),
        sum(max(0.0, one.believed - one.cached) for one in seen) / tokens,
        sum(max(0.0, one.cached - one.believed) for one in seen) / tokens,
        mean(one.ttft_ms for one in seen),
        median(one.ttft_ms for one in seen),
        max(map(workers.count, workers)) / len(seen),
    )


def table(rounds: Sequence[Figures]) -> str:
    """All rounds and their means, as Markdown."""
    lines = [
        "| mode | round | cached | believed, not there | there, not believed | error | TTFT mean | median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mode in MODES:
        own = [one for one in rounds if one.mode == mode]
        for number, one in enumerate(own, start=1):
            lines.append(_row(mode, str(number), [one]))
        if len(own) > 1:
            lines.append(_row(f"**{mode}**", "mean", own))
    return "\n".join(lines)


def _row(mode: str, number: str, rounds: Sequence[Figures]) -> str:
    def of(name: str) -> float:
        return mean(getattr(one, name) for one in rounds)

    ratios = [f"{of(name):.1%}" for name in ("cached_ratio", "over_ratio", "under_ratio")]
    times = [f"{of(name):.0f} ms" for name in ("mean_ttft_ms", "median_ttft_ms")]
    cells = [mode, number, *ratios, f"{of('mean_error'):.0f} tokens", *times]
    return f"| {' | '.join(cells)} |"


class Fleet:
    """A scheduler, a gateway and workers, until the stack ends."""

    def __init__(self, stack: AsyncExitStack, engine: str, model: str, mode: str) -> None:
        self._stack = stack
        self._engine = engine
        self._model = model
        self._mode = mode
        self.gateway: Process

    async def start(self) -> None:
        scheduler = await self._process("lb-scheduler", "--port", "0", "--metrics-port", "0")
        address = self._scheduler = str((await scheduler.line("ready"))["grpc"])
        self.gateway = await self._process("lb-gateway", "--port", "0", "--scheduler", address)
        self.url = f"http://{(await self.gateway.line('ready'))['http']}"
        await asyncio.gather(*(self._start_worker(address, number) for number in range(WORKERS)))

    async def believed(self, turn: Turn) -> Mapping[str, float]:
        """Tokens of the prompt that each worker is thought to hold."""
        data = conversation_bytes(turn.messages)
        facts = RouteFacts("", "m", len(data), block_hashes(data), max_output_tokens=MAX_TOKENS)
        _, explanation = await explain_route(self._scheduler, facts)
        return {one.worker_id: one.cached_tokens for one in explanation.candidates}

    async def worker_of(self, request_id: str) -> str:
        """Where a request was answered."""
        line = await self.gateway.line("request", lambda line: line["request_id"] == request_id)
        return str(line["worker_id"])

    async def _start_worker(self, scheduler: str, number: int) -> None:
        worker = await self._process(
            *("lb-worker", "--engine", self._engine, "--model", self._model, "--served-model-name", "m"),
            *("--port", "0", "--metrics-port", "0", "--worker-id", f"w{number}", "--scheduler", scheduler),
            f"--{'' if self._mode == 'events' else 'no-'}{self._engine}-prefix-events",
            *(SIM if self._engine == "sim" else VLLM).split(),
            env={"VLLM_CPU_OMP_THREADS_BIND": str(number)},
        )
        await worker.line("registered", within_s=900)

    async def _process(self, script: str, *arguments: str, env: dict[str, str] | None = None) -> Process:
        return await self._stack.enter_async_context(await Process.start(script, *arguments, env=env))


async def play(fleet: Fleet, turns: Sequence[Turn]) -> list[Seen]:
    """All turns by as many users, each conversation's one after another."""
    waiting = iter(enumerate(turns))
    turn_of = [asyncio.Lock() for _ in range(CONVERSATIONS)]
    seen: list[Seen] = []

    async def user(http: aiohttp.ClientSession) -> None:
        for number, turn in waiting:
            async with turn_of[turn.conversation]:
                seen.append(await _ask(fleet, http, f"r{number}", turn))

    async with aiohttp.ClientSession(fleet.url) as http, asyncio.TaskGroup() as users:
        for _ in range(USERS):
            users.create_task(user(http))
    return seen


async def _ask(fleet: Fleet, http: aiohttp.ClientSession, request_id: str, turn: Turn) -> Seen:
    believed = await fleet.believed(turn)
    body = {
        "model": "m",
        "messages": turn.messages,
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first_token = time.perf_counter(), 0.0
    usage: dict[str, Any] = {}
    headers = {"Content-Type": "application/json", "X-Request-ID": request_id}
    async with http.post("/v1/chat/completions", data=orjson.dumps(body), headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            # Nothing is sent before the first token.
            first_token = first_token or time.perf_counter()
            if line.startswith(b"data: {"):
                usage = orjson.loads(line[6:]).get("usage") or usage
    worker = await fleet.worker_of(request_id)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Seen(worker, usage["prompt_tokens"], cached, believed.get(worker, 0.0), (first_token - began) * 1000)


async def run(engine: str, rounds: int, requests: int) -> list[Figures]:
    """Both modes in turn, as often as there are rounds."""
    results: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        model = "m" if engine == "sim" else str(_write_model(Path(folder) / "model"))
        for number in range(rounds):
            for mode in MODES if number % 2 == 0 else MODES[::-1]:
                async with AsyncExitStack() as stack:
                    fleet = Fleet(stack, engine, model, mode)
                    await fleet.start()
                    results.append(figures(mode, await play(fleet, conversations(requests, seed=number))))
                print(results[-1], flush=True)
    return results


def _write_model(folder: Path) -> Path:
    """The demo model's tokenizer and template around a shape of ours."""
    shutil.copytree(demo.HF_PATH, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({**config, **SHAPE}))
    return folder


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("sim", "vllm"), default="sim")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", type=Path, help="where to write the figures of each round")
    options = parser.parse_args()
    if options.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        parser.error("vLLM is not installed here; make test-engines installs it into .venv-engines")
    results = asyncio.run(run(options.engine, options.rounds, options.requests))
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
