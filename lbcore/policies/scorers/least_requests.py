"""Prefers workers with few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.types import Endpoint, PickRequest


@dataclass(frozen=True, slots=True)
class LeastRequests:
    """1 / (1 + requests in flight): 1 for an idle worker, near 0 for a crowded one, the same whoever stands beside."""

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        return [1.0 / (1 + candidate.requests) for candidate in candidates]
