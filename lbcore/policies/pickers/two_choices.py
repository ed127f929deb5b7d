"""Draws two candidates and takes the cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lbcore.types import Snapshot


@dataclass(frozen=True, slots=True)
class TwoChoices:
    """The cheaper of two drawn candidates, then the other and a few more draws, cheapest first.

    Robust where costs are out of date and many schedulers see the same ones (Mitzenmacher, "The power of two choices in
    randomized load balancing", 2001).
    """

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        drawn = rng.sample(range(len(costs)), min(max(2, count), len(costs)))
        pick = min(drawn[:2], key=costs.__getitem__)
        others = sorted((index for index in drawn if index != pick), key=costs.__getitem__)
        return [pick, *others][:count]
