"""What is measured: each scenario is a name, workers, a load, and the figures that come out."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.dataplane import plain, streams
from bench.dataplane.bodies import LONG_CHARACTERS
from bench.dataplane.meter import Memory, Meter, Spent
from bench.dataplane.plain import Plain
from bench.dataplane.streams import Streams
from bench.dataplane.system import Fleet, Running

WORKERS = "workers"
"""The role of the simulated workers, beside those of the layer."""

_MEMORY_WARM_UP, _MEMORY_REQUESTS, _MEMORY_CONNECTIONS = 20_000, 100_000, 64
_MEMORY_LIMIT = 24
"""Times `seconds` after which each half of the memory scenario ends with what it has: 2 minutes by default."""

_UNIT = itertools.count()
"""Tells the runs of this process apart, so that no prompt comes twice."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure."""

    seconds: float = 5.0
    warm_up_s: float = 2.0
    memory_requests: int = _MEMORY_REQUESTS
    memory_warm_up: int = _MEMORY_WARM_UP
    run: str = "0"
    """Names this invocation in every prompt."""

    def unit(self) -> str:
        """Names one run of a client. At most 20 characters, as `bodies.template` wants it."""
        return f"{self.run}-{next(_UNIT)}"


Figures = dict[str, Any]
"""Numbers by name; `errors` counts what went wrong, and a run with any is not valid."""

Measure = Callable[[Running, Settings], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of what is measured."""

    name: str
    title: str
    measure: Measure
    fleet: Fleet = field(default_factory=Fleet)
    is_alone: bool = False
    """Starts processes of its own, and once only, whatever number of rounds is asked for."""


def meter(running: Running) -> Meter:
    """Of the layer's roles and the workers."""
    return Meter({**running.layer, WORKERS: running.workers})


def per(unit: str, count: int, cpu_s: Mapping[str, float], scale: float) -> Figures:
    """CPU by role, of the layer and of everything, per unit; `scale` makes seconds into what is wanted."""
    if not count:
        return {}
    roles = {role: seconds * scale / count for role, seconds in cpu_s.items()}
    layer = sum(value for role, value in roles.items() if role != WORKERS)
    return {
        f"cpu_{unit}_by_role": roles,
        f"cpu_{unit}_layer": layer,
        f"cpu_{unit}_workers": roles[WORKERS],
        f"cpu_{unit}_total": sum(roles.values()),
    }


def _noise(spent: Spent) -> Figures:
    """What says how far to trust the rest."""
    return {"cpu_s": spent.cpu_s, "neighbour_cores": spent.neighbour_cores, "spin_ms": spent.spin_ms}


def _plain(load: Plain, factor: float = 1.0) -> Measure:
    async def measure(running: Running, settings: Settings) -> Figures:
        await plain.run(running.url, replace(load, seconds=settings.warm_up_s), settings.unit())
        with meter(running).spent() as spent:
            figures = await plain.run(running.url, replace(load, seconds=settings.seconds * factor), settings.unit())
        cpu = per("us_per_request", figures["requests"], spent.cpu_s, 1e6)
        return {**figures, **cpu, **_noise(spent)}

    return measure


def _streams(load: Streams) -> Measure:
    async def measure(running: Running, settings: Settings) -> Figures:
        warm = replace(load, seconds=settings.warm_up_s, run=settings.unit())
        await streams.run((running.url, *running.more_urls), warm)
        timed = replace(load, seconds=settings.seconds, run=settings.unit())
        with meter(running).spent() as spent:
            figures = await streams.run((running.url, *running.more_urls), timed)
        cpu = per("us_per_request", figures["requests"], spent.cpu_s, 1e6)
        if not load.whole:
            cpu |= per("ms_per_1000_tokens", figures["tokens"], spent.cpu_s, 1e6)
        return {**figures, **cpu, **_noise(spent)}

    return measure


async def _memory(running: Running, settings: Settings) -> Figures:
    """RSS at the start, after the warm-up and after the requests."""
    reader, errors, served = meter(running), {}, []
    reader.reset_peaks()
    states: list[dict[str, Memory]] = [reader.memory()]
    seconds = settings.seconds * _MEMORY_LIMIT
    for requests in (settings.memory_warm_up, settings.memory_requests):
        load = Plain(_MEMORY_CONNECTIONS, seconds, requests, max_tokens=1)
        figures = await plain.run(running.url, load, settings.unit())
        served.append(figures["requests"])
        errors.update(figures["errors"])
        states.append(reader.memory())
    started, warm, end = states
    roles = [role for role in end if role != WORKERS]
    growth = sum(end[role].rss - warm[role].rss for role in roles)
    return {
        "requests": served[1],
        "warm_up_requests": served[0],
        "rss_mb_started": {role: started[role].rss / 1e6 for role in end},
        "rss_mb_warm": {role: warm[role].rss / 1e6 for role in end},
        "rss_mb_end": {role: end[role].rss / 1e6 for role in end},
        "pss_mb_end": {role: (end[role].pss or 0) / 1e6 for role in end},
        "peak_rss_mb": {role: end[role].peak_rss / 1e6 for role in end},
        "rss_mb_layer_warm": sum(warm[role].rss for role in roles) / 1e6,
        "rss_mb_layer": sum(end[role].rss for role in roles) / 1e6,
        "rss_bytes_per_request_layer": growth / served[1] if served[1] else None,
        "errors": errors,
    }


_STAMPED = Fleet(step_ms=5, stamp=True)

SCENARIOS = (
    Scenario("plain-1", "whole answers, 1 connection", _plain(Plain(1, 0))),
    Scenario("plain-8", "whole answers, 8 connections", _plain(Plain(8, 0))),
    Scenario("plain-64", "whole answers, 64 connections", _plain(Plain(64, 0))),
    # What is under way when wrk ends is no answer, yet has cost CPU: twice the time halves its share.
    Scenario("plain-512", "whole answers, 512 connections", _plain(Plain(512, 0), 2)),
    Scenario("whole-100", "whole answers of 100 tokens, 64 connections", _plain(Plain(64, 0, max_tokens=100))),
    Scenario("prompts-200k", "prompts of 200 KB, 16 connections", _plain(Plain(16, 0, characters=LONG_CHARACTERS))),
    Scenario("streams-64", "streams of 100 tokens, unpaced, 64 at once", _streams(Streams(64))),
    Scenario("ttft-1", "time to first token, 1 stream at once", _streams(Streams(1, tokens=4))),
    Scenario(
        "open-500", "500 requests/s, arriving by chance", _streams(Streams(256, plain.MAX_TOKENS, rate=500, whole=True))
    ),
    Scenario(
        "open-2000",
        "2,000 requests/s, arriving by chance",
        _streams(Streams(256, plain.MAX_TOKENS, rate=2000, whole=True)),
    ),
    Scenario("paced-64", "streams of 100 tokens at 5 ms, 64 at once", _streams(Streams(64, stamp=True)), _STAMPED),
    Scenario("paced-256", "streams of 100 tokens at 5 ms, 256 at once", _streams(Streams(256, stamp=True)), _STAMPED),
    Scenario("memory", "memory over 100,000 requests", _memory, is_alone=True),
)
"""In the order in which they are run and shown."""

NAMES = tuple(scenario.name for scenario in SCENARIOS)
