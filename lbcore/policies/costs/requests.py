"""The fewest requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import requests_in_flight
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in flight: reported ones, and those on the way."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        return requests_in_flight(candidates)
