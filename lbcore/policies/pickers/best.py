"""Takes the cheapest candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lbcore.types import Snapshot


@dataclass(frozen=True, slots=True)
class Best:
    """The candidates of least cost, cheapest first; among equals each is as likely as another."""

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        dearest = sorted(costs)[:count][-1]
        ranking = [index for index, cost in enumerate(costs) if cost <= dearest]
        if len(ranking) > count:
            equal = [index for index in ranking if costs[index] == dearest]
            ranking = [index for index in ranking if costs[index] < dearest]
            ranking += rng.sample(equal, count - len(ranking))
        return sorted(ranking, key=lambda index: (costs[index], rng.random()))
