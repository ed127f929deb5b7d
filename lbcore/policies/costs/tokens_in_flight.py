"""The fewest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class TokensInFlight:
    """Prompt and generated tokens of unfinished requests, and the uncached prompt tokens on the way."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        return [candidate.load.tokens_in_flight + candidate.credit_tokens for candidate in candidates]
