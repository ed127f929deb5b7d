"""Scorers put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.base import WeightedScores
from lbcore.types import Endpoint, PickRequest
from tests.fleet import MODEL, endpoint


@dataclass(frozen=True)
class Fixed:
    scores: tuple[float, ...]

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        return self.scores


def test_weighted_scores_add_up_and_the_best_costs_least() -> None:
    scores = WeightedScores(((Fixed((1.0, 0.0)), 2.0), (Fixed((0.5, 1.0)), 1.0)))
    assert scores.cost(PickRequest(MODEL), [endpoint("a"), endpoint("b")]) == [-2.5, -1.0]


def test_without_scorers_all_cost_the_same() -> None:
    assert WeightedScores().cost(PickRequest(MODEL), [endpoint("a"), endpoint("b")]) == [0.0, 0.0]
