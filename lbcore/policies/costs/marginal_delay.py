"""What the request waits for its first token at each candidate, and what it makes the others there wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lbcore.cost import delays_ms
from lbcore.cost_terms import terms_ms
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class MarginalDelay:
    """Milliseconds of delay by `lbcore.cost`.

    Speed, queue, batch and prefix hits are in one unit: a hit is worth the prefill it saves and no more, and a prefix
    that everybody holds cancels out.
    """

    unit: ClassVar[str] = "ms"

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        return delays_ms(request, candidates, snapshot)

    def terms(
        self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot
    ) -> Sequence[Mapping[str, float]]:
        return terms_ms(request, candidates, snapshot)
