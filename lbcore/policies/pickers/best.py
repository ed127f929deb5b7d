"""Takes the cheapest candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from random import Random

from lbcore.types import Snapshot

_MANY = 200
"""Costs beyond which to look for the few smallest is faster than to sort them all."""


@dataclass(frozen=True, slots=True)
class Best:
    """The candidates of least cost, cheapest first; among equals each is as likely as another."""

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        if len(costs) > count:
            dearest = nsmallest(count, costs)[-1] if len(costs) > _MANY else sorted(costs)[count - 1]
            ranking = [index for index, cost in enumerate(costs) if cost <= dearest]
        else:
            ranking = [*range(len(costs))]
        if len(ranking) > count:
            equal = [index for index in ranking if costs[index] == dearest]
            ranking = [index for index in ranking if costs[index] < dearest]
            ranking += rng.sample(equal, count - len(ranking))
        return sorted(ranking, key=lambda index: (costs[index], rng.random()))
