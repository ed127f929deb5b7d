"""The embedded engine: tokens per second, time to the first, time to let go, and what a token costs in CPU time.

python -m bench.llamacpp_engine [--model FILE] [--max-tokens 200] [--prompt-tokens 1500] [--repeat 3] [engine options]

"our CPU" is the event loop's thread, which does nothing but read, parse and emit; "llama.cpp" is all other threads of
the process.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import orjson

from lbcore.clock import MonotonicClock
from lbcore.generation import Delta, Dialect, Event, Failed, Finished, GenerationRequest, Started
from worker import demo
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions

STREAMS = (1, 8, 32)


class Stream:
    """One request, and when what happened to it."""

    def __init__(self, engine: LlamaCppEngine, request_id: str, body: dict[str, object], dialect: Dialect) -> None:
        self.submitted_at = time.perf_counter()
        self.started_at = self.first_at = self.ended_at = 0.0
        self.tokens = 0
        self.started = asyncio.Event()
        self.first = asyncio.Event()
        self.ended = asyncio.Event()
        engine.submit(GenerationRequest(request_id, dialect, orjson.dumps(body)), self._take)

    def _take(self, event: Event) -> None:
        match event:
            case Started():
                self.started_at = time.perf_counter()
                self.started.set()
            case Delta():
                if not self.first_at:
                    self.first_at = time.perf_counter()
                    self.first.set()
            case Finished():
                self.tokens = event.output_tokens
                self._end()
            case Failed():
                self._end()

    def _end(self) -> None:
        self.ended_at = time.perf_counter()
        for event in (self.started, self.first, self.ended):
            event.set()


def chat(number: int, max_tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Question {number}: what does a load balancer do?"}]
    return {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}


async def throughput(engine: LlamaCppEngine, streams: int, max_tokens: int) -> None:
    """Streams at once, and what their tokens cost."""
    wall, process, ours = time.perf_counter(), time.process_time(), time.thread_time()
    running = [Stream(engine, f"s{number}", chat(number, max_tokens), Dialect.CHAT) for number in range(streams)]
    for stream in running:
        await stream.ended.wait()
    wall, process, ours = time.perf_counter() - wall, time.process_time() - process, time.thread_time() - ours
    tokens = sum(stream.tokens for stream in running)
    ttft = statistics.median(stream.first_at - stream.submitted_at for stream in running)
    print(
        f"{streams:3} streams: {tokens / wall:8,.0f} tokens/s   TTFT median {ttft * 1e3:7.2f} ms   "
        f"CPU per token: ours {ours / tokens * 1e6:5.1f} us, llama.cpp {(process - ours) / tokens * 1e6:6.1f} us"
    )


async def cancellation(engine: LlamaCppEngine, sequences: int, max_tokens: int, prompt_tokens: int) -> None:
    """From abort to the end of the request, in each phase."""

    async def stop(stream: Stream, request_id: str) -> float:
        aborted_at = time.perf_counter()
        engine.abort(request_id)
        await stream.ended.wait()
        return (stream.ended_at - aborted_at) * 1e3

    decoding = Stream(engine, "decoding", chat(0, max_tokens), Dialect.CHAT)
    await decoding.first.wait()
    decoding_ms = await stop(decoding, "decoding")
    prompt = [50 + (7 * position) % 600 for position in range(prompt_tokens)]
    prefill = Stream(engine, "prefill", {"prompt": prompt, "max_tokens": 8}, Dialect.COMPLETION)
    await prefill.started.wait()
    prefill_ms = await stop(prefill, "prefill")
    names = [f"c{number}" for number in range(sequences + 1)]
    crowd = [Stream(engine, name, chat(number, max_tokens), Dialect.CHAT) for number, name in enumerate(names)]
    await crowd[0].first.wait()
    queued_ms = await stop(crowd[-1], names[-1])
    for stream, name in zip(crowd, names, strict=True):
        await stop(stream, name)
    print(f"cancelled: queued {queued_ms:.2f} ms, in prefill {prefill_ms:.2f} ms, decoding {decoding_ms:.2f} ms")


async def run(arguments: argparse.Namespace) -> None:
    """Starts the engine once and measures everything `--repeat` times."""
    options = LlamaCppOptions(
        n_ctx=arguments.n_ctx,
        n_parallel=arguments.n_parallel,
        n_batch=arguments.n_batch,
        n_threads=arguments.n_threads,
    )
    engine = LlamaCppEngine(arguments.model, options, MonotonicClock())
    began = time.perf_counter()
    info = await engine.start()
    print(f"ready in {time.perf_counter() - began:.2f} s, context {info.context_length} tokens")
    for _ in range(arguments.repeat):
        for streams in STREAMS:
            await throughput(engine, streams, arguments.max_tokens)
        await cancellation(engine, arguments.n_parallel, arguments.max_tokens, arguments.prompt_tokens)
    load = engine.load()
    print(f"measured: prefill {load.prefill_tokens_per_s:,.0f} tokens/s, step {load.step_time_ms:.2f} ms")
    await engine.close()


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo.GGUF_PATH)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=1500)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--n-ctx", type=int, default=0)
    parser.add_argument("--n-parallel", type=int, default=8)
    parser.add_argument("--n-batch", type=int, default=0)
    parser.add_argument("--n-threads", type=int, default=0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
