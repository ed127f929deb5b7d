"""Laws that every registered part of a policy keeps, and every preset."""

from __future__ import annotations

from copy import deepcopy
from math import isfinite
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.pick import FALLBACK_COUNT, pick
from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import COSTS, FILTERS, PICKERS, SCORERS, build_policy
from lbcore.types import TAKERS, Endpoint, EndpointState, PickRequest, RefusalReason, Refused, Snapshot
from tests.fleet import scenes

Scene = tuple[PickRequest, list[Endpoint]]

laws = settings(derandomize=True, max_examples=30, deadline=None, database=None)
NOW = 0.0
every_filter = pytest.mark.parametrize("name", sorted(FILTERS))
every_picker = pytest.mark.parametrize("name", sorted(PICKERS))
every_policy = pytest.mark.parametrize("name", sorted(PRESETS))
cost_lists = st.lists(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0])), min_size=1, max_size=30)

every_scorer_and_cost = pytest.mark.parametrize("name", sorted({*SCORERS, *COSTS}))


def numbers(name: str, request: PickRequest, candidates: list[Endpoint]) -> list[float]:
    """What the scorer or cost of this name says of the candidates."""
    if name in SCORERS:
        return list(SCORERS[name]().score(request, candidates))
    return list(COSTS[name]().cost(request, candidates, Snapshot(0.0, 0, tuple(candidates))))


@every_filter
@laws
@given(scene=scenes())
def test_a_filter_keeps_some_of_the_candidates_in_their_order(name: str, scene: Scene) -> None:
    request, candidates = scene
    kept = list(FILTERS[name]().keep(request, candidates, NOW))
    assert kept == [candidate for candidate in candidates if any(candidate is other for other in kept)]


@every_filter
@laws
@given(scene=scenes())
def test_filtering_twice_is_filtering_once(name: str, scene: Scene) -> None:
    request, candidates = scene
    once = list(FILTERS[name]().keep(request, candidates, NOW))
    assert list(FILTERS[name]().keep(request, once, NOW)) == once


@pytest.mark.parametrize("name", sorted(set(FILTERS) - {"ready", "objective"}))
@laws
@given(scene=scenes())
def test_a_filter_looks_at_each_candidate_alone(name: str, scene: Scene) -> None:
    # All but `ready`, which takes silent workers only when there are no others, and `objective`, which does likewise.
    request, candidates = scene
    keep = FILTERS[name]().keep
    alone = [candidate for candidate in candidates if keep(request, [candidate], NOW)]
    assert list(keep(request, candidates, NOW)) == alone


@every_scorer_and_cost
@laws
@given(scene=scenes())
def test_every_candidate_gets_one_finite_number(name: str, scene: Scene) -> None:
    request, candidates = scene
    found = numbers(name, request, candidates)
    assert len(found) == len(candidates)
    assert all(isfinite(number) for number in found)


@pytest.mark.parametrize("name", sorted(SCORERS))
@laws
@given(scene=scenes())
def test_a_score_is_between_0_and_1(name: str, scene: Scene) -> None:
    request, candidates = scene
    assert all(0.0 <= score <= 1.0 for score in SCORERS[name]().score(request, candidates))


@every_scorer_and_cost
@laws
@given(scene=scenes())
def test_a_number_does_not_depend_on_the_order_or_on_how_often_it_is_asked_for(name: str, scene: Scene) -> None:
    request, candidates = scene
    forward = numbers(name, request, candidates)
    assert numbers(name, request, candidates[::-1])[::-1] == forward
    assert numbers(name, request, candidates) == forward


@every_picker
@laws
@given(costs=cost_lists, count=st.integers(1, 6), pick_count=st.integers(0, 100), seed=st.integers(0, 1000))
def test_a_ranking_is_of_different_candidates_and_as_long_as_asked_for(
    name: str, costs: list[float], count: int, pick_count: int, seed: int
) -> None:
    ranking = PICKERS[name]().rank(costs, count, Snapshot(0.0, pick_count, ()), Random(seed))
    assert len(ranking) == len(set(ranking)) == min(count, len(costs))
    assert all(0 <= index < len(costs) for index in ranking)


@every_picker
@laws
@given(costs=cost_lists, seed=st.integers(0, 1000))
def test_the_same_chance_gives_the_same_ranking_and_the_costs_stay_as_they_were(
    name: str, costs: list[float], seed: int
) -> None:
    before = list(costs)
    picker, snapshot = PICKERS[name](), Snapshot(0.0, 3, ())
    assert picker.rank(costs, 4, snapshot, Random(seed)) == picker.rank(costs, 4, snapshot, Random(seed))
    assert costs == before


@every_policy
@laws
@given(scene=scenes(), pick_count=st.integers(0, 100), seed=st.integers(0, 1000))
def test_a_pick_changes_nothing_and_takes_only_whom_it_may(name: str, scene: Scene, pick_count: int, seed: int) -> None:
    request, endpoints = scene
    snapshot = Snapshot(0.0, pick_count, tuple(endpoints))
    # What cannot change cannot be copied either.
    before = deepcopy((request._replace(held_ms={}), snapshot))
    decision = pick(request, snapshot, build_policy(name), Random(seed))
    assert (request, snapshot) == before
    if isinstance(decision, Refused):
        assert (decision.reason is RefusalReason.MODEL_NOT_FOUND) == (not endpoints)
        return
    ranked = [decision.endpoint, *decision.fallbacks]
    assert len({endpoint.worker_id for endpoint in ranked}) == len(ranked) <= 1 + FALLBACK_COUNT
    for endpoint in ranked:
        assert endpoint in endpoints
        assert endpoint.room > 0
        assert endpoint.state is not EndpointState.DRAINING
        assert endpoint.worker_id not in request.tried
        assert endpoint.spec.role in TAKERS[request.phase]
    assert [worker_id for worker_id, _ in decision.scores] == [endpoint.worker_id for endpoint in ranked]
    assert isfinite(decision.predicted_ttft_ms)
    assert decision.predicted_ttft_ms >= 0
