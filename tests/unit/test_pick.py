"""The decision: who, who else, or why nobody."""

from __future__ import annotations

from random import Random

import pytest

from lbcore.cost import DEFAULT_ATTENTION_RATIO
from lbcore.pick import FALLBACK_COUNT, pick
from lbcore.policies.presets import DEFAULT_POLICY, PRESETS
from lbcore.policies.registry import build_policy
from lbcore.types import (
    Capacity,
    Endpoint,
    EndpointState,
    LoadReport,
    PickRequest,
    RefusalReason,
    Refused,
    Role,
    Routed,
    WorkerId,
)
from tests.fleet import MODEL, endpoint, snapshot

REQUEST = PickRequest(MODEL, 1000)
DRAINING, SILENT = EndpointState.DRAINING, EndpointState.SILENT
FULL = Capacity(max_sequences=0)
every_policy = pytest.mark.parametrize("name", sorted(PRESETS))


def decide(name: str, *endpoints: Endpoint, request: PickRequest = REQUEST, seed: int = 0) -> Routed | Refused:
    return pick(request, snapshot(*endpoints), build_policy(name), Random(seed))


def routed(name: str, *endpoints: Endpoint, request: PickRequest = REQUEST, seed: int = 0) -> Routed:
    decision = decide(name, *endpoints, request=request, seed=seed)
    assert isinstance(decision, Routed)
    return decision


@every_policy
def test_nobody_serves_the_model(name: str) -> None:
    assert decide(name) == Refused(RefusalReason.MODEL_NOT_FOUND)


@every_policy
def test_all_who_serve_it_are_draining_or_tried_or_of_another_role(name: str) -> None:
    request = PickRequest(MODEL, tried=frozenset({WorkerId("b")}))
    endpoints = endpoint("a", state=DRAINING), endpoint("b"), endpoint("c", role=Role.DECODE)
    assert decide(name, *endpoints, request=request) == Refused(RefusalReason.NO_READY_WORKER)


@every_policy
def test_all_who_are_ready_are_full(name: str) -> None:
    endpoints = endpoint("a", capacity=FULL), endpoint("b", state=SILENT), endpoint("c", state=DRAINING)
    assert decide(name, *endpoints) == Refused(RefusalReason.SATURATED)


@every_policy
def test_a_silent_worker_is_taken_only_when_no_ready_one_is_left(name: str) -> None:
    silent, ready = endpoint("a", state=SILENT), endpoint("b", load=LoadReport(queued_requests=50))
    retry = PickRequest(MODEL, tried=frozenset({ready.worker_id}))
    decision = routed(name, silent, ready)
    assert (decision.endpoint, decision.fallbacks) == (ready, ())
    assert routed(name, silent, ready, request=retry).endpoint is silent


@every_policy
def test_a_draining_worker_is_never_taken(name: str) -> None:
    assert decide(name, endpoint(state=DRAINING)) == Refused(RefusalReason.NO_READY_WORKER)


@every_policy
def test_fallbacks_are_others_and_few(name: str) -> None:
    endpoints = [endpoint(f"w{number}") for number in range(8)]
    decision = routed(name, *endpoints)
    names = {decision.endpoint.worker_id, *(other.worker_id for other in decision.fallbacks)}
    assert len(names) == 1 + FALLBACK_COUNT


@every_policy
def test_every_worker_gets_its_turn_among_equals(name: str) -> None:
    endpoints = [endpoint(f"w{number}") for number in range(4)]
    policy = build_policy(name)
    picks = [pick(REQUEST, snapshot(*endpoints, pick_count=count), policy, Random(count)) for count in range(60)]
    picked = {decision.endpoint.worker_id for decision in picks if isinstance(decision, Routed)}
    assert picked == {item.worker_id for item in endpoints}


def test_the_default_takes_the_soonest_first_token_and_ranks_the_others() -> None:
    loads = [LoadReport(queued_prompt_tokens=tokens) for tokens in (3000, 0, 2000, 1000, 4000)]
    endpoints = [endpoint(f"w{number}", load=load) for number, load in enumerate(loads)]
    decision = routed(DEFAULT_POLICY, *endpoints)
    assert decision.endpoint is endpoints[1]
    assert decision.fallbacks == (endpoints[3], endpoints[2], endpoints[0])
    own_ms = 100 * (1 + DEFAULT_ATTENTION_RATIO * 500)
    assert decision.predicted_ttft_ms == pytest.approx(own_ms)
    expected = {"w1": -own_ms, "w3": -own_ms - 100, "w2": -own_ms - 200, "w0": -own_ms - 300}
    assert dict(decision.scores) == pytest.approx(expected)


def test_by_default_a_hit_is_worth_the_prefill_it_saves_and_no_more() -> None:
    request = PickRequest(MODEL, 1000, {WorkerId("holder"): 800})
    free = endpoint("free")
    for in_front, winner in ((700, "holder"), (900, "free")):
        holder = endpoint("holder", load=LoadReport(queued_prompt_tokens=in_front))
        assert routed(DEFAULT_POLICY, free, holder, request=request).endpoint.worker_id == winner


def test_a_prefix_that_everybody_holds_attracts_to_nobody() -> None:
    idle, busy = endpoint("idle"), endpoint("busy", load=LoadReport(queued_prompt_tokens=100))
    request = PickRequest(MODEL, 1000, {WorkerId("idle"): 900, WorkerId("busy"): 900})
    assert routed(DEFAULT_POLICY, busy, idle, request=request).endpoint is idle


def test_the_same_seed_gives_the_same_decision() -> None:
    endpoints = [endpoint(f"w{number}") for number in range(8)]
    assert routed("random", *endpoints, seed=7) == routed("random", *endpoints, seed=7)
