"""Takes the cheapest candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lbcore.types import Snapshot

_MANY, _FEW = 200, 64
"""Costs beyond which it pays to sort only those below a bound, and how many the bound is made of."""


@dataclass(frozen=True, slots=True)
class Best:
    """The candidates of least cost, cheapest first; among equals each is as likely as another."""

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        ranking: Sequence[int] = range(len(costs))
        low = costs
        if len(costs) > _MANY:
            # A bound that the cheapest keep, since so many of a few keep it, spares sorting all of them.
            bound = sorted(costs[:: len(costs) // _FEW])[count - 1]
            ranking = [index for index, cost in enumerate(costs) if cost <= bound]
            low = [costs[index] for index in ranking]
        if len(ranking) > count:
            dearest = sorted(low)[count - 1]
            ranking = [index for index in ranking if costs[index] <= dearest]
        if len(ranking) > count:
            equal = [index for index in ranking if costs[index] == dearest]
            ranking = [index for index in ranking if costs[index] < dearest]
            ranking += rng.sample(equal, count - len(ranking))
        return sorted(ranking, key=lambda index: (costs[index], rng.random()))
