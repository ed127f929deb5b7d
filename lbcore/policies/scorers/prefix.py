"""Prefers workers that hold much of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import hit_ratios
from lbcore.types import Endpoint, PickRequest


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of the prompt that the worker is believed to hold; 0 for everybody when the prompt is empty."""

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        return hit_ratios(request, candidates)
