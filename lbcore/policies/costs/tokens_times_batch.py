"""The least prefill, times how many it would share the worker with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import requests_in_flight, tokens_in_front, uncached_tokens
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class TokensTimesBatch:
    """Uncached prompt tokens, in front and own, times the requests in flight and this one.

    At least one token counts, since an engine computes the last one of every prompt: zero would hide the batch.
    """

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        fronts, own = tokens_in_front(candidates), uncached_tokens(request, candidates)
        return [
            max(1.0, front + tokens) * (count + 1)
            for front, tokens, count in zip(fronts, own, requests_in_flight(candidates), strict=True)
        ]
