"""Draws a candidate by what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import log
from random import Random

from lbcore.types import Snapshot

_NEVER = 1e300
"""A time that no rate above 1e-298 has."""


@dataclass(frozen=True, slots=True)
class Lottery:
    """Candidates drawn one after another, each with a chance in proportion to how far its cost is below 0.

    Those at 0 and above are drawn last, each as likely as another.
    """

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        if min(costs) == max(costs):
            return rng.sample(range(len(costs)), min(count, len(costs)))
        # Of exponential times with these rates, each is the first with the chance wanted, and so on for the rest.
        draw = rng.random
        times = [log(1.0 - draw()) / cost if cost < 0.0 else _NEVER + _NEVER * draw() for cost in costs]
        return nsmallest(count, range(len(costs)), key=times.__getitem__)
