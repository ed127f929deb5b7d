"""Keeps workers that would serve the request as fast as it asks to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lbcore.cost import first_token_ms, step_ms
from lbcore.types import Agreement, Endpoint, PickRequest, RefusalReason


@dataclass(frozen=True, slots=True)
class MeetsObjective:
    """Candidates that are predicted to meet its objectives, time to first token and time per token.

    Where none meets both, those that meet the first, and where none does, all: an objective is no reason to refuse.
    """

    refusal: ClassVar[RefusalReason] = RefusalReason.NO_READY_WORKER

    def keeps_all(self, request: PickRequest, agreement: Agreement) -> bool:
        return not request.ttft_slo_ms and not request.tpot_slo_ms

    def keep(self, request: PickRequest, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        ttft_slo_ms, tpot_slo_ms = request.ttft_slo_ms, request.tpot_slo_ms
        prompt = candidates
        if ttft_slo_ms:
            prompt = [one for one in candidates if first_token_ms(request, one, now) <= ttft_slo_ms] or candidates
        if tpot_slo_ms:
            return [one for one in prompt if step_ms(one) <= tpot_slo_ms] or prompt
        return prompt
