"""Keeps workers that did not fail this request before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lbcore.types import Agreement, Endpoint, PickRequest, RefusalReason


@dataclass(frozen=True, slots=True)
class Untried:
    """Candidates that are not in the request's `tried`."""

    refusal: ClassVar[RefusalReason] = RefusalReason.NO_READY_WORKER

    def keeps_all(self, request: PickRequest, agreement: Agreement) -> bool:
        return not request.tried

    def keep(self, request: PickRequest, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        tried = request.tried
        return [candidate for candidate in candidates if candidate.spec.worker_id not in tried]
