"""Prefers workers where few requests wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import waiting_requests
from lbcore.types import Endpoint, PickRequest


@dataclass(frozen=True, slots=True)
class Queue:
    """From 1 where the fewest wait down to 0 where the most do; 1 for everybody when that is the same."""

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        waiting = waiting_requests(candidates)
        most = max(waiting, default=0)
        spread = most - min(waiting, default=0)
        return [(most - count) / spread for count in waiting] if spread else [1.0] * len(waiting)
