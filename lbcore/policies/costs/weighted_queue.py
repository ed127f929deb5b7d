"""The fewest requests, where one that waits counts for several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.base import parameter
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class WeightedQueue:
    """Running requests, and the waiting ones times a weight; what is on the way waits."""

    waiting_weight: float = parameter(10.0)
    """FastDeploy's example configuration. Its code has 1, which makes this the number of requests; vLLM has 4."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        weight = self.waiting_weight
        return [
            candidate.load.running_requests + weight * (candidate.load.queued_requests + candidate.credit_requests)
            for candidate in candidates
        ]
