"""Prefers workers that hold much of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.types import Endpoint, PickRequest


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The part of the prompt that the worker is believed to hold; 0 for everybody when the prompt is empty."""

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        hit_tokens, tokens = request.hit_tokens, max(1, request.prompt_tokens)
        return [min(1.0, hit_tokens.get(candidate.spec.worker_id, 0.0) / tokens) for candidate in candidates]
