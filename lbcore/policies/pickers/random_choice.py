"""Takes any candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lbcore.types import Snapshot


@dataclass(frozen=True, slots=True)
class RandomChoice:
    """Candidates drawn without regard to cost, each as likely as another."""

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        return rng.sample(range(len(costs)), min(count, len(costs)))
