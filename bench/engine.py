"""Any engine, measured inside its contract: tokens per second, time to the first, time to let go, CPU time per token.

python -m bench.engine --engine vllm --model demo [options of lb-worker] [-- words of the engine's own]

Environment: STREAMS=1,16,64 requests at once, MAX_TOKENS=200 of each answer, PROMPT_TOKENS=800 of the long prompt,
REPEAT=3 rounds. "Ours" is the event loop's thread, which reads bodies, detokenizes, parses and emits, vLLM's and
transformers' own code in it included; "engine" is every other thread and process that computes.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

import orjson

from lbcore.clock import MonotonicClock
from lbcore.config import load_groups
from lbcore.generation import Delta, Dialect, Event, Failed, Finished, GenerationRequest, Started
from worker.cli import groups
from worker.config import WorkerConfig
from worker.engine import Engine
from worker.engines import ENGINES, Assignment, model_name

STREAMS = tuple(map(int, os.environ.get("STREAMS", "1,16,64").split(",")))
MAX_TOKENS = int(os.environ.get("MAX_TOKENS", "200"))
PROMPT_TOKENS = int(os.environ.get("PROMPT_TOKENS", "800"))
REPEAT = int(os.environ.get("REPEAT", "3"))
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Stream:
    """One request, and when what happened to it."""

    def __init__(self, engine: Engine, request_id: str, body: dict[str, object], dialect: Dialect) -> None:
        self.request_id = request_id
        self.submitted_at = time.perf_counter()
        self.first_at = self.ended_at = 0.0
        self.tokens = 0
        self.error: Exception | None = None
        self.started, self.first, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        engine.submit(GenerationRequest(request_id, dialect, orjson.dumps(body)), self._take)

    def _take(self, event: Event) -> None:
        match event:
            case Started():
                self.started.set()
            case Delta() if not self.first_at:
                self.first_at = time.perf_counter()
                self.first.set()
            case Finished(output_tokens=tokens):
                self.tokens = tokens
                self._end()
            case Failed(error=error):
                self.error = error
                self._end()

    def _end(self) -> None:
        self.ended_at = time.perf_counter()
        for event in (self.started, self.first, self.ended):
            event.set()


def chat(number: int, name: str, **fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Question {number}: what does a load balancer do?"}]
    return {
        "model": name,
        "messages": messages,
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        **fields,
    }


def children_cpu_s() -> float:
    """CPU seconds of all processes below this one so far."""
    parents: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name stands in brackets and may hold anything.
            facts = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents.setdefault(int(facts[1]), []).append(pid)
        seconds[pid] = (int(facts[11]) + int(facts[12])) / TICKS_PER_S
    found, below = 0.0, [*parents.get(os.getpid(), [])]
    while below:
        pid = below.pop()
        found += seconds[pid]
        below += parents.get(pid, [])
    return found


async def throughput(engine: Engine, name: str, streams: int) -> None:
    """Streams at once, and what their tokens cost."""
    wall, process, ours = time.perf_counter(), time.process_time(), time.thread_time()
    below = children_cpu_s()
    running = [Stream(engine, f"s{number}", chat(number, name), Dialect.CHAT) for number in range(streams)]
    for stream in running:
        await stream.ended.wait()
        if stream.error is not None:
            raise stream.error
    wall, process, ours = time.perf_counter() - wall, time.process_time() - process, time.thread_time() - ours
    others = process - ours + children_cpu_s() - below
    tokens = sum(stream.tokens for stream in running)
    ttft = statistics.median(stream.first_at - stream.submitted_at for stream in running)
    print(
        f"{streams:3} streams: {tokens / wall:8,.0f} tokens/s   TTFT median {ttft * 1e3:7.2f} ms   "
        f"CPU per token: ours {ours / tokens * 1e6:6.1f} us, engine {others / tokens * 1e6:7.1f} us",
        flush=True,
    )


async def stop(engine: Engine, stream: Stream) -> tuple[float, float]:
    """Milliseconds from abort to the request's last event, and until the cache holds nothing of it."""
    aborted_at = time.perf_counter()
    engine.abort(stream.request_id)
    await stream.ended.wait()
    while engine.load().kv_used_blocks:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.0002)
    return (stream.ended_at - aborted_at) * 1e3, (time.perf_counter() - aborted_at) * 1e3


async def cancellation(engine: Engine, name: str) -> None:
    """A request alone in the engine is aborted, in decoding and in prefill."""
    decoding = Stream(engine, "decoding", chat(0, name), Dialect.CHAT)
    await decoding.first.wait()
    told, free = await stop(engine, decoding)
    prompt = [50 + (7 * position) % 600 for position in range(PROMPT_TOKENS)]
    body: dict[str, object] = {"model": name, "prompt": prompt, "max_tokens": 8}
    prefill = Stream(engine, "prefill", body, Dialect.COMPLETION)
    await asyncio.sleep(0.002)
    told_prefill, free_prefill = await stop(engine, prefill)
    print(
        f"aborted while decoding: told after {told:.2f} ms, free after {free:.2f} ms; "
        f"in prefill: {told_prefill:.2f} and {free_prefill:.2f} ms"
    )


async def run(engine: Engine, name: str) -> None:
    """Starts the engine once and measures everything in rounds."""
    began = time.perf_counter()
    info = await engine.start()
    print(f"ready in {time.perf_counter() - began:.2f} s, context {info.context_length} tokens, {info.capacity}")
    for _ in range(REPEAT):
        for streams in STREAMS:
            await throughput(engine, name, streams)
        await cancellation(engine, name)
    load = engine.load()
    print(f"measured: prefill {load.prefill_tokens_per_s:,.0f} tokens/s, step {load.step_time_ms:.2f} ms")
    await engine.close()


def main() -> None:
    """Read the worker's own options and measure."""
    argv = sys.argv[1:] or ["--engine", "llamacpp", "--model", "demo"]
    loaded = load_groups(groups(), "bench.engine", argv, os.environ, description=__doc__ or "")
    config = loaded[WorkerConfig]
    kind = ENGINES[config.engine]
    name = (config.served_model_name or (model_name(config.model),))[0]
    asyncio.run(run(kind.create(Assignment(config.model, (name,)), loaded[kind.options], MonotonicClock()), name))


if __name__ == "__main__":
    main()
