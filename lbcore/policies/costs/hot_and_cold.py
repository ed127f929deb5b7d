"""The shortest latency among those that are not crowded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from lbcore.policies.base import parameter
from lbcore.policies.measures import expected_latencies_ms, preferred_first, requests_in_flight
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class HotAndCold:
    """Expected latency where requests in flight do not exceed a quantile of theirs; behind them, requests in flight."""

    quantile: float = parameter(0.84, most=1.0)
    """Prequal's. 0 leaves the requests in flight alone, 1 the latencies alone."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        loads = requests_in_flight(candidates)
        if not loads:
            return []
        limit = sorted(loads)[max(0, ceil(self.quantile * len(loads)) - 1)]
        cold = [load <= limit for load in loads]
        latencies_ms = expected_latencies_ms(candidates)
        costs = [
            latency_ms if is_cold else load for latency_ms, load, is_cold in zip(latencies_ms, loads, cold, strict=True)
        ]
        return costs if all(cold) else preferred_first(costs, cold)
