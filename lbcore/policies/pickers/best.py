"""Takes the cheapest candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from random import Random

from lbcore.types import Snapshot


@dataclass(frozen=True, slots=True)
class Best:
    """The candidates of least cost, cheapest first; among equals each is as likely as another."""

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        dearest = nsmallest(count, costs)[-1]
        cheaper = [index for index, cost in enumerate(costs) if cost < dearest]
        equal = [index for index, cost in enumerate(costs) if cost == dearest]
        rng.shuffle(cheaper)
        cheaper.sort(key=costs.__getitem__)
        return cheaper + rng.sample(equal, min(count - len(cheaper), len(equal)))
