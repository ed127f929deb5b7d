"""Keeps workers that take what is asked for: the whole request, from prompt to last token, or a phase of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lbcore.types import TAKERS, Agreement, Endpoint, PickRequest, RefusalReason


@dataclass(frozen=True, slots=True)
class TakesPhase:
    """Candidates whose role takes the request's phase; those of role MIXED take each, and alone take whole requests."""

    refusal: ClassVar[RefusalReason] = RefusalReason.NO_READY_WORKER

    def keeps_all(self, request: PickRequest, agreement: Agreement) -> bool:
        return agreement.all_mixed

    def keep(self, request: PickRequest, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        takers = TAKERS[request.phase]
        return [candidate for candidate in candidates if candidate.spec.role in takers]
