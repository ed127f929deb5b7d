"""The fewest requests for its speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import declared_speeds, requests_in_flight
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class RequestsPerSpeed:
    """Requests in flight, divided by the declared speed: of two workers, one twice as fast may have twice as many."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        requests, speeds = requests_in_flight(candidates), declared_speeds(candidates)
        return [count / speed for count, speed in zip(requests, speeds, strict=True)]
