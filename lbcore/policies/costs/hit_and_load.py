"""The part of the prompt that is missing, weighed against the load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.base import parameter
from lbcore.policies.measures import hit_ratios, imbalanced, requests_in_flight, tokens_in_front
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class HitAndLoad:
    """The part of the prompt not held, and the requests in flight as a part of the greatest such number, both weighted.

    An empty prompt, or loads that are out of balance, make it the uncached prompt tokens in front.
    """

    hit_weight: float = parameter(1.0)
    """FastDeploy's code and its example."""
    load_weight: float = parameter(1.0)
    """FastDeploy's code; its example has 0.05."""
    imbalance_gap: float = parameter(64.0)
    """Requests. SGLang's; with FastDeploy's 1 two requests more switch affinity off and on all the time."""
    imbalance_ratio: float = parameter(1.5, least=1.0)
    """SGLang's; FastDeploy has 1.25, written as a gap of 0.2 of the greatest load."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        loads = requests_in_flight(candidates)
        if not request.prompt_tokens or imbalanced(loads, self.imbalance_gap, self.imbalance_ratio):
            return tokens_in_front(candidates)
        load_weight, hit_weight = self.load_weight / max(1, max(loads, default=0)), self.hit_weight
        return [
            hit_weight * (1.0 - hit) + load_weight * load
            for hit, load in zip(hit_ratios(request, candidates), loads, strict=True)
        ]
