"""The fewest tokens among those who hold the prompt, unless one would wait too long there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.base import parameter
from lbcore.policies.measures import first_token_ms, preferred_first, uncached_tokens
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class GatedAffinity:
    """Tokens in flight and uncached tokens of the request; holders of the prompt come first, within the gate."""

    hit_ratio: float = parameter(0.8, most=1.0)
    """The part of the prompt that makes a holder: 0.8 in llm-d."""
    gate_ms: float = parameter(5000.0)
    """How much later than elsewhere the first token may come at a holder; llm-d: 5,000 in guides, 18,000 in code."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        own = uncached_tokens(request, candidates)
        loads = [
            candidate.load.tokens_in_flight + candidate.credit_tokens + tokens
            for candidate, tokens in zip(candidates, own, strict=True)
        ]
        enough = self.hit_ratio * request.prompt_tokens
        holders = [request.prompt_tokens - tokens >= enough for tokens in own]
        if all(holders) or not any(holders):
            return loads
        waits_ms = first_token_ms(request, candidates, own, snapshot.taken_at)
        latest_ms = min(waits_ms) + self.gate_ms
        near = [holds and wait_ms <= latest_ms for holds, wait_ms in zip(holders, waits_ms, strict=True)]
        return preferred_first(loads, near) if any(near) else loads
