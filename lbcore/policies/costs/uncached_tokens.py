"""The fewest prompt tokens to compute until this prompt is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import tokens_in_front, uncached_tokens
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class UncachedTokens:
    """Uncached prompt tokens in front of the request, and its own: the queue and what a hit saves have one unit."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        own = uncached_tokens(request, candidates)
        return [front + tokens for front, tokens in zip(tokens_in_front(candidates), own, strict=True)]
