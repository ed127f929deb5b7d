"""The least prefill to do and context to decode over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.base import parameter
from lbcore.policies.measures import tokens_in_front, uncached_tokens
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class PrefillAndDecode:
    """Uncached prompt tokens, in front and own, times a scale, and tokens in flight.

    Tokens stand for blocks: their number orders workers alike, and those with blocks of different sizes too.
    """

    prefill_scale: float = parameter(1.0)
    """Dynamo's `prefill_load_scale`."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        scale, fronts, own = self.prefill_scale, tokens_in_front(candidates), uncached_tokens(request, candidates)
        return [
            scale * (front + tokens) + candidate.load.tokens_in_flight + candidate.credit_tokens
            for candidate, front, tokens in zip(candidates, fronts, own, strict=True)
        ]
