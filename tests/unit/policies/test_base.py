"""Scorers put together, and what every filter may skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings

from lbcore.policies.base import WeightedScores
from lbcore.policies.registry import FILTERS
from lbcore.types import Agreement, Endpoint, EndpointState, PickRequest, Role
from tests.fleet import MODEL, scenes
from tests.unit.policies.workers import costs, prompt, worker


@dataclass(frozen=True)
class Fixed:
    scores: tuple[float, ...]

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        return self.scores


def test_weighted_scores_add_up_and_the_best_costs_least() -> None:
    scores = WeightedScores(((Fixed((1.0, 0.0)), 2.0), (Fixed((0.5, 1.0)), 1.0)))
    assert costs(scores, prompt(), worker("a"), worker("b")) == [-2.5, -1.0]


def test_without_scorers_all_cost_the_same() -> None:
    assert costs(WeightedScores(), prompt(), worker("a"), worker("b")) == [0.0, 0.0]


@pytest.mark.parametrize("name", sorted(FILTERS))
@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(scene=scenes())
def test_a_filter_that_says_it_keeps_all_keeps_all(name: str, scene: tuple[PickRequest, list[Endpoint]]) -> None:
    request, candidates = scene
    agreement = Agreement(
        all(candidate.spec.role is Role.MIXED for candidate in candidates),
        all(candidate.state is EndpointState.READY for candidate in candidates),
        all(candidate.room > 0 for candidate in candidates),
    )
    part = FILTERS[name]()
    if part.keeps_all(request, agreement):
        assert list(part.keep(request, candidates, 0.0)) == candidates


@pytest.mark.parametrize("name", ["has_room", "ready", "role"])
def test_where_nobody_has_looked_a_filter_looks_itself(name: str) -> None:
    assert not FILTERS[name]().keeps_all(PickRequest(MODEL), Agreement())
    assert FILTERS[name]().keeps_all(PickRequest(MODEL), Agreement(True, True, True))
