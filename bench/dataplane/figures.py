"""Arithmetic on samples: percentiles, histograms, Poisson arrivals. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest rank: the smallest sample that at least `percent` of all do not exceed. NaN of nothing.

    Args:
        ordered: the samples, least first.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def summary(samples: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    """Count, p50, p90, p99, max and mean, each sample times `scale`. Nothing but the count of nothing."""
    ordered = sorted(samples)
    if not ordered:
        return {"count": 0}
    figures = {f"p{percent}": percentile(ordered, percent) * scale for percent in (50, 90, 99)}
    return {"count": len(ordered), **figures, "max": ordered[-1] * scale, "mean": sum(ordered) / len(ordered) * scale}


def histogram(samples: Iterable[float]) -> dict[str, int]:
    """How many samples lie below each power of two and not below the one before, the least bound first."""
    counts: dict[int, int] = {}
    for sample in samples:
        exponent = math.frexp(sample)[1] if sample > 0 else -1074
        counts[exponent] = counts.get(exponent, 0) + 1
    return {f"{2.0**exponent:g}": counts[exponent] for exponent in sorted(counts)}


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of arrival within `seconds`, at `rate` a second on average; the same for the same seed."""
    rng = random.Random(seed)
    arrivals, now = [], rng.expovariate(rate)
    while now < seconds:
        arrivals.append(now)
        now += rng.expovariate(rate)
    return arrivals
