"""The fewest uncached prompt tokens in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import tokens_in_front
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class QueuedTokens:
    """Prompt tokens still to compute, queued and on the way."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        return tokens_in_front(candidates)
