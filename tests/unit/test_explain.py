"""How a decision came about: all candidates, what made their costs, who was left out, and a sentence of facts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.explain import explain
from lbcore.pick import pick
from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import FILTERS, build_policy
from lbcore.types import (
    Capacity,
    Endpoint,
    EndpointState,
    Explanation,
    LoadReport,
    PickRequest,
    Routed,
    Snapshot,
    WorkerId,
)
from tests.fleet import MODEL, endpoint, scenes, snapshot

every_policy = pytest.mark.parametrize("name", sorted(PRESETS))
FULL = Capacity(max_sequences=1)


def explained(name: str, request: PickRequest, *endpoints: Endpoint, would_wait: bool = False) -> Explanation:
    policy, taken = build_policy(name), snapshot(*endpoints)
    decision = pick(request, taken, policy, Random(0))
    return explain(request, taken, policy, decision, 12.5, would_wait)


def queued(name: str, tokens: int) -> Endpoint:
    return endpoint(name, load=LoadReport(queued_prompt_tokens=tokens))


@every_policy
@settings(derandomize=True, max_examples=40, deadline=None, database=None)
@given(scene=scenes(), seed=st.integers(0, 1000))
def test_everybody_is_there_once_the_cheapest_first_with_terms_that_are_the_cost(
    name: str, scene: tuple[PickRequest, list[Endpoint]], seed: int
) -> None:
    request, endpoints = scene
    policy, taken = build_policy(name), Snapshot(0.0, 3, tuple(endpoints))
    decision = pick(request, taken, policy, Random(seed))
    found = explain(request, taken, policy, decision)
    candidates = found.candidates
    assert sorted(one.worker_id for one in candidates) == [one.worker_id for one in endpoints]
    weighed = [one for one in candidates if not one.excluded_by]
    assert candidates[: len(weighed)] == tuple(weighed)
    assert [one.cost for one in weighed] == sorted(one.cost for one in weighed)
    assert {one.excluded_by for one in candidates[len(weighed) :]} <= set(FILTERS)
    for one in candidates:
        assert one.cached_tokens == request.hit_tokens.get(one.worker_id, 0.0)
        assert not one.terms or sum(one.terms.values()) == pytest.approx(one.cost, rel=1e-6, abs=1e-6)
    assert isinstance(decision, Routed) == bool(weighed)
    if isinstance(decision, Routed):
        costs = {one.worker_id: one.cost for one in weighed}
        assert {worker_id: costs[worker_id] for worker_id, _ in decision.scores} == {
            worker_id: -score for worker_id, score in decision.scores
        }
    assert found.reason
    assert not found.reason.endswith(".")


def test_the_reason_compares_the_cheapest_with_the_next_and_says_what_it_holds() -> None:
    request = PickRequest(MODEL, 4000, {WorkerId("w1"): 3072.0})
    found = explained("cost", request, queued("w0", 0), queued("w1", 500), queued("w2", 900))
    first, second, _ = found.candidates
    assert (first.worker_id, second.worker_id) == ("w1", "w0")
    assert found.reason == (
        f"cheapest of 3: {first.cost:.1f} ms against {second.cost:.1f} ms at w0; it holds 3,072 of 4,000 prompt tokens"
    )
    assert (found.policy, found.prompt_tokens, found.waited_ms) == ("cost", 4000, 12.5)
    assert first.terms["wait"] == pytest.approx(50.0)


def test_a_holder_that_was_not_picked_is_named_with_its_cost_or_with_who_left_it_out() -> None:
    request = PickRequest(MODEL, 1000, {WorkerId("w1"): 800.0})
    dear = explained("cost", request, queued("w0", 0), queued("w1", 90_000))
    assert dear.reason.endswith(f"; w1 holds 800 of 1,000, at {dear.candidates[1].cost:,.1f} ms")
    full = endpoint("w1", capacity=FULL, load=LoadReport(running_requests=1))
    out = explained("cost", request, queued("w0", 0), full)
    assert out.reason == (
        "the only one that can take it; w1 holds 800 of 1,000, but is left out by has_room; left out: 1 by has_room"
    )
    assert (out.candidates[1].excluded_by, out.candidates[1].cost) == ("has_room", 0.0)


def test_equals_are_drawn() -> None:
    found = explained("least_requests", PickRequest(MODEL), endpoint("w0"), endpoint("w1"))
    assert found.reason == "drawn from the 2 cheapest of 2, at 0 each"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("round_robin", "its turn among 2"),
        ("power_of_two", "the cheaper of two drawn from 2"),
        ("random", "drawn from 2, the cheaper the likelier"),
    ],
)
def test_who_does_not_take_the_cheapest_says_how_it_picks(name: str, reason: str) -> None:
    assert explained(name, PickRequest(MODEL), endpoint("w0"), endpoint("w1")).reason == reason


def test_scorers_are_terms_by_their_names() -> None:
    request = PickRequest(MODEL, 100, {WorkerId("w0"): 50.0})
    found = explained("gie", request, endpoint("w0"), endpoint("w1"))
    assert found.candidates[0].terms == {"queue": -2.0, "kv": -2.0, "prefix": -1.5}


def test_a_policy_without_terms_has_costs_alone() -> None:
    assert explained("least_tokens", PickRequest(MODEL), endpoint()).candidates[0].terms == {}


def test_nobody_is_explained_too() -> None:
    assert explained("cost", PickRequest(MODEL)).reason == "no worker serves the model"
    draining, tried = endpoint("w0", state=EndpointState.DRAINING), endpoint("w1")
    found = explained("cost", PickRequest(MODEL, tried=frozenset({WorkerId("w1")})), draining, tried)
    assert found.reason == "nobody of 2 can take it; left out: 1 by untried, 1 by ready"
    assert [(one.worker_id, one.excluded_by) for one in found.candidates] == [("w1", "untried"), ("w0", "ready")]


def test_a_request_that_would_wait_says_for_whom() -> None:
    found = explained("cost", PickRequest(MODEL, 10), endpoint("w0"), would_wait=True)
    assert found.reason == "would wait for w0: the only one that can take it"
