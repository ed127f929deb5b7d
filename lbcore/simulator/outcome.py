"""What a replay comes to: latencies, goodput, hits and balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from lbcore.simulator.replay import Played


@dataclass(frozen=True, slots=True)
class Objective:
    """What counts as served well."""

    ttft_ms: float = 2000.0
    tpot_ms: float = 100.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a latency, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one replay."""

    calls: int
    refused: int
    ttft: Spread
    tpot: Spread
    goodput: float
    """Which part of the calls was served inside the objective; refused ones were not."""
    hit_rate: float
    """Which part of the prompt tokens was found in caches."""
    imbalance: float
    """New prompt tokens of the worker that computed most, over the mean."""
    calls_per_s: float
    busy: float
    """Which part of the time the engines had work."""


def spread(values: Sequence[float]) -> Spread:
    """Percentiles are those of the nearest rank."""
    if not values:
        return Spread(0.0, 0.0, 0.0, 0.0)
    ordered = sorted(values)
    size = len(ordered)
    p50, p90, p99 = (ordered[max(0, ceil(size * part) - 1)] for part in (0.5, 0.9, 0.99))
    return Spread(fmean(ordered), p50, p90, p99)


def summarise(played: Played, objective: Objective = Objective(), skip: int = 0) -> Outcome:
    """All but the first `skip` calls."""
    flights = played.flights[skip:]
    served = [flight for flight in flights if not flight.refused]
    ttfts = [(flight.first_at - flight.asked_at) * 1000 for flight in served]
    tpots = [
        (flight.finished_at - flight.first_at) * 1000 / (flight.call.output_tokens - 1)
        for flight in served
        if flight.call.output_tokens > 1
    ]
    good = 0
    for flight in served:
        more = flight.call.output_tokens - 1
        tpot_ms = (flight.finished_at - flight.first_at) * 1000 / more if more else 0.0
        good += (flight.first_at - flight.asked_at) * 1000 < objective.ttft_ms and tpot_ms < objective.tpot_ms
    prompt_tokens = sum(flight.call.input_tokens for flight in served)
    cached_tokens = sum(flight.cached_tokens for flight in served)
    workers = [*played.workers, *played.dead]
    prefilled = [worker.prefilled_tokens for worker in workers]
    return Outcome(
        calls=len(flights),
        refused=len(flights) - len(served),
        ttft=spread(ttfts),
        tpot=spread(tpots),
        goodput=good / len(flights) if flights else 0.0,
        hit_rate=cached_tokens / prompt_tokens if prompt_tokens else 0.0,
        imbalance=max(prefilled) / fmean(prefilled) if sum(prefilled) else 1.0,
        calls_per_s=len(played.flights) / played.duration_s if played.duration_s else 0.0,
        busy=sum(worker.busy_s for worker in workers) / (played.duration_s * len(workers))
        if played.duration_s
        else 0.0,
    )
