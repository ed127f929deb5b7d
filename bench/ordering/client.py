"""The client of an open loop: asks at given times whatever has come back, and reads streams."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from random import Random
from statistics import median

import aiohttp
import orjson

from bench.ordering.figures import Answer
from bench.ordering.fleets import Engine
from bench.ordering.traffic import Ask

_TOKEN = re.compile(rb'"content": ?"[^"]')
_PROBES = 12
_PROBE_TOKENS = 80
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def reader() -> aiohttp.ClientSession:
    """A session with as many connections as there are requests, and no limit to their time."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))


async def play(url: str, asks: Sequence[Ask], begin: float, patience_s: float) -> list[Answer]:
    """Asks each at its time behind `begin`, a `time.monotonic()`; answers in the order of `asks`. What has not come
    `patience_s` after the last was asked is given up."""
    async with reader() as session:
        tasks = []
        for ask in asks:
            await asyncio.sleep(begin + ask.at_s - time.monotonic())
            tasks.append(asyncio.create_task(_ask(session, url, ask.body(), ask.at_s, begin)))
        done, late = await asyncio.wait(tasks, timeout=patience_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return [
            task.result() if task in done else Answer(ask.at_s, error="gave up")
            for task, ask in zip(tasks, asks, strict=True)
        ]


async def idle_delay_ms(url: str, engine: Engine, tokens: int, rng: Random) -> float:
    """What a first token takes longer than in the engine alone, while nobody else asks: the median of a few, of so
    many tokens each."""
    delays = []
    async with reader() as session:
        for number in range(_PROBES):
            text = "".join(rng.choices(_LETTERS, k=4 * _PROBE_TOKENS))
            answer = await _ask(session, url, Ask(number, 0.0, (("user", text),), tokens).body(), 0.0, time.monotonic())
            if answer.error:
                raise RuntimeError(f"{url}: {answer.error}")
            delays.append(answer.ttft_ms - engine.idle_ttft_ms(answer.prompt_tokens))
            await asyncio.sleep(2 * engine.step_ms / 1000)
    return median(delays)


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes, asked_s: float, begin: float) -> Answer:
    first = last = -1.0
    pieces: list[bytes] = []
    try:
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as response:
            async for piece in response.content.iter_any():
                if _TOKEN.search(piece):
                    last = time.monotonic() - begin
                    if first < 0:
                        first = last
                pieces.append(piece)
            if response.status != 200:
                return Answer(asked_s, error=f"status {response.status}")
    except (aiohttp.ClientError, OSError) as error:
        return Answer(asked_s, error=type(error).__name__)
    return read(b"".join(pieces), asked_s, first, last)


def read(stream: bytes, asked_s: float, first_s: float, last_s: float) -> Answer:
    """What a complete stream of events says, whose first and last token came at these times. Pure."""
    if not stream.rstrip().endswith(b"data: [DONE]"):
        return Answer(asked_s, error="cut off")
    for line in reversed(stream.splitlines()):
        if line.startswith(b"data: {"):
            usage = orjson.loads(line[6:]).get("usage")
            if usage:
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                prompt, output = usage["prompt_tokens"], usage["completion_tokens"]
                return Answer(asked_s, first_s, last_s, prompt, cached, output, "" if first_s >= 0 else "no token")
    return Answer(asked_s, error="no usage")


async def requests_of(metrics: Sequence[str]) -> list[int]:
    """Requests that each worker has ended well so far, from its metrics."""
    counts = []
    async with reader() as session:
        for address in metrics:
            async with session.get(f"http://{address}/metrics") as response:
                found = re.findall(r'^lb_worker_requests_total\{reason="OK"\} (\S+)$', await response.text(), re.M)
                counts.append(round(sum(map(float, found))))
    return counts
