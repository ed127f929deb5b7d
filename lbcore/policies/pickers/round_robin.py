"""Takes the candidates in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lbcore.types import Snapshot


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """The candidate whose turn it is by the number of picks made before, then those after it; costs mean nothing."""

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        turn = snapshot.pick_count
        return [(turn + step) % len(costs) for step in range(min(count, len(costs)))]
