"""The time until each candidate would produce the first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.cost import first_token_ms
from lbcore.types import Endpoint, PickRequest


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Milliseconds to the first token by `lbcore.cost`.

    Speed, queue, batch and prefix hits are in one unit: a hit is worth the prefill it saves and no more, and a prefix
    that everybody holds cancels out.
    """

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        return first_token_ms(request, candidates)
