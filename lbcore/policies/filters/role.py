"""Keeps workers that can serve a request from prompt to last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lbcore.types import Agreement, Endpoint, PickRequest, RefusalReason, Role


@dataclass(frozen=True, slots=True)
class TakesWholeRequests:
    """Candidates of role MIXED: one that only prefills or only decodes serves half a request."""

    refusal: ClassVar[RefusalReason] = RefusalReason.NO_READY_WORKER

    def keeps_all(self, request: PickRequest, agreement: Agreement) -> bool:
        return agreement.all_mixed

    def keep(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        mixed = Role.MIXED
        return [candidate for candidate in candidates if candidate.spec.role is mixed]
