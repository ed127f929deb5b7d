"""The shortest end-to-end latency to expect from the answers seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import expected_latencies_ms
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class ObservedLatency:
    """Mean latency of the last answers for each request in flight then, times those in flight and this one.

    The latency alone says nothing of what was sent since, and keeps traffic where it once was low.
    """

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        return expected_latencies_ms(candidates)
