"""How fast the unpaced simulated engine emits tokens in one process, and what a token costs in CPU time.

python -m bench.sim_engine [--requests 2000] [--concurrency 64] [--max-tokens 200] [--repeat 3]
"""

from __future__ import annotations

import argparse
import asyncio
import time

import orjson

from lbcore.clock import MonotonicClock
from lbcore.generation import Delta, Dialect, Event, Failed, Finished, GenerationRequest
from worker.engines.sim.engine import SimEngine, SimOptions


class ClosedLoop:
    """Keeps a number of requests in flight until all are answered, and counts what comes."""

    def __init__(self, engine: SimEngine, requests: int, max_tokens: int) -> None:
        self._engine = engine
        self._requests = requests
        self._max_tokens = max_tokens
        self._submitted = 0
        self._open = 0
        self.tokens = 0
        self.done = asyncio.Event()

    def submit(self) -> None:
        if self._submitted == self._requests:
            return
        number = self._submitted
        self._submitted += 1
        self._open += 1
        messages = [{"role": "user", "content": f"Question {number}: what does a load balancer do? " * 8}]
        body = orjson.dumps({"model": "sim", "messages": messages, "max_tokens": self._max_tokens, "stream": True})
        self._engine.submit(GenerationRequest(str(number), Dialect.CHAT, body), self._take)

    def _take(self, event: Event) -> None:
        match event:
            case Delta(token_ids=token_ids):
                self.tokens += len(token_ids)
            case Finished():
                self._open -= 1
                self.submit()
                if not self._open:
                    self.done.set()
            case Failed(error):
                raise error


async def measure(requests: int, concurrency: int, max_tokens: int) -> tuple[int, float, float]:
    """Tokens, wall seconds and CPU seconds."""
    engine = SimEngine(SimOptions(step_ms=0), MonotonicClock())
    await engine.start()
    loop = ClosedLoop(engine, requests, max_tokens)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(min(concurrency, requests)):
        loop.submit()
    await loop.done.wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await engine.close()
    return loop.tokens, wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    for _ in range(options.repeat):
        tokens, wall_s, cpu_s = asyncio.run(measure(options.requests, options.concurrency, options.max_tokens))
        speed = f"{tokens / wall_s:,.0f} tokens/s, {1e6 * cpu_s / tokens:.2f} us CPU per token"
        print(f"{tokens} tokens in {wall_s:.3f} s: {speed}")


if __name__ == "__main__":
    main()
