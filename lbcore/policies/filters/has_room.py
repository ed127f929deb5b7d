"""Keeps workers that would not refuse the request for want of room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lbcore.types import Agreement, Endpoint, PickRequest, RefusalReason


@dataclass(frozen=True, slots=True)
class HasRoom:
    """Candidates with a free place among their sequences or in their queue."""

    refusal: ClassVar[RefusalReason] = RefusalReason.SATURATED

    def keeps_all(self, request: PickRequest, agreement: Agreement) -> bool:
        return agreement.all_roomy

    def keep(self, request: PickRequest, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        return [candidate for candidate in candidates if candidate.room > 0]
