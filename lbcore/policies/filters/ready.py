"""Keeps workers that take new requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lbcore.types import Agreement, Endpoint, EndpointState, PickRequest, RefusalReason


@dataclass(frozen=True, slots=True)
class Ready:
    """READY candidates; SILENT ones in their place when there are none.

    A silent worker may well be alive, and the scheduler's own network be what broke; but it is nobody's first choice.
    """

    refusal: ClassVar[RefusalReason] = RefusalReason.NO_READY_WORKER

    def keeps_all(self, request: PickRequest, agreement: Agreement) -> bool:
        return agreement.all_ready

    def keep(self, request: PickRequest, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        ready, silent = EndpointState.READY, EndpointState.SILENT
        return [candidate for candidate in candidates if candidate.state is ready] or [
            candidate for candidate in candidates if candidate.state is silent
        ]
