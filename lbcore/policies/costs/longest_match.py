"""Who holds the most of the prompt, unless it is little or loads are out of balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.base import parameter
from lbcore.policies.measures import hit_ratios, imbalanced, preferred_first, requests_in_flight
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class LongestMatch:
    """Requests in flight; the workers that hold the most of the prompt come first, if it is enough."""

    match_ratio: float = parameter(0.3, most=1.0)
    """The part of the prompt that is enough when it is more than this; SGLang's gateway."""
    imbalance_gap: float = parameter(64.0)
    """Requests; SGLang's gateway."""
    imbalance_ratio: float = parameter(1.5, least=1.0)
    """SGLang's gateway."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        loads = requests_in_flight(candidates)
        ratios = hit_ratios(request, candidates)
        longest = max(ratios, default=0.0)
        if longest <= self.match_ratio or imbalanced(loads, self.imbalance_gap, self.imbalance_ratio):
            return loads
        return preferred_first(loads, [ratio == longest for ratio in ratios])
