"""Who holds the most of the prompt and is not much more loaded than the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from lbcore.policies.base import parameter
from lbcore.policies.measures import hit_ratios, preferred_first, requests_in_flight
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class MatchNearMean:
    """Requests in flight; of those with a load near the mean, the ones that hold the most of the prompt come first."""

    imbalance_gap: float = parameter(8.0)
    """Requests between the least and the greatest load beyond which only load counts; AIBrix's code, 16 in its docs."""
    deviations: float = parameter(1.0)
    """How many standard deviations above the mean a holder's load may be; AIBrix's code, its docs have 2."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        loads = requests_in_flight(candidates)
        if not request.hit_tokens or not loads or max(loads) - min(loads) > self.imbalance_gap:
            return loads
        # Whole numbers up to the root, so that the order of the candidates leaves no trace.
        count, total = len(loads), sum(loads)
        deviation = sqrt(count * sum([load * load for load in loads]) - total * total) / count
        limit = total / count + self.deviations * deviation
        ratios = [
            ratio if load <= limit else 0.0 for ratio, load in zip(hit_ratios(request, candidates), loads, strict=True)
        ]
        most = max(ratios)
        return preferred_first(loads, [ratio == most for ratio in ratios]) if most > 0.0 else loads
