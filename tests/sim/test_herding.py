"""A thousand picks at once on reports that are out of date: credit alone keeps them from piling up."""

from __future__ import annotations

from random import Random

import pytest

from lbcore.cost import (
    CROWDING_WEIGHT,
    DEFAULT_PREFILL_MS_PER_TOKEN,
    DEFAULT_STEP_MS,
    EXPECTED_OUTPUT_TOKENS,
    INTERFERENCE_PER_REQUEST,
    INTERFERENCE_REQUEST_LIMIT,
    QUEUE_LIMIT,
    QUEUE_WEIGHT,
    STEP_SLOPE,
)
from lbcore.pick import pick
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Dispatched, Registered, Reported
from lbcore.types import Capacity, Endpoint, Epoch, LoadReport, Routed, RouteFacts, Ticket, WorkerId
from tests.fleet import MODEL, spec

WORKERS = 16
PICKS = 1000


def crowd(policy_name: str, prompt_bytes: list[int]) -> tuple[Endpoint, ...]:
    """The endpoints after so many picks; every tenth is followed by a report, idle as before, that knows of none."""
    pool, policy, rng = WorkerPool(lease_ttl_s=1e6, ticket_ttl_s=1e6), build_policy(policy_name), Random(1)
    for number in range(WORKERS):
        # Sequences for all, so that the wait for a slot, which counts requests and not tokens, plays no part.
        pool.handle(Registered(spec(f"w{number}", capacity=Capacity(max_sequences=PICKS)), number), 0.0)
    for number, length in enumerate(prompt_bytes):
        facts = RouteFacts("r", MODEL, length)
        request = pool.pick_request(facts)
        decision = pick(request, pool.snapshot(MODEL, 0.0), policy, rng)
        assert isinstance(decision, Routed)
        pool.handle(Dispatched(Ticket(number), decision.endpoint.worker_id, request, facts), 0.0)
        if number % 10 == 0:
            worker_id = WorkerId(f"w{rng.randrange(WORKERS)}")
            pool.handle(Reported(worker_id, Epoch(1), LoadReport(sequence=number + 1)), 0.0)
    return pool.endpoints()


@pytest.mark.parametrize("policy", ["cost", "least_requests", "round_robin"])
def test_equal_requests_spread_as_evenly_as_they_can(policy: str) -> None:
    # Each pick takes a worker with the fewest requests, since with equal requests cost grows with each one it holds,
    # and turns are even by themselves; so no two counts differ by more than one.
    requests = [endpoint.credit_requests for endpoint in crowd(policy, [4000] * PICKS)]
    assert sum(requests) == PICKS
    assert max(requests) - min(requests) <= 1


def test_unequal_requests_spread_evenly_in_tokens() -> None:
    # A pick of n tokens on worker w rather than v has (1 + ρ)·a·B(w) + c·t·d(w) + a·n·(1 + q·Q + θ·f·d(w)) no
    # greater than the same of v, where θ counts d up to D, f is at most 1 and the prompt's part of an answer, and q·Q
    # has its limit too; ρ is there because nothing is worked off
    # here, so that all in front was given lately. After it B(w) has grown by n; and until w is picked again the
    # difference only shrinks. Attention makes the longest prompt here a sixth dearer than its tokens.
    rng = Random(2)
    prompt_bytes = [round(400 * 2 ** rng.uniform(0, 8)) for _ in range(PICKS)]
    endpoints = crowd("cost", prompt_bytes)
    tokens = [endpoint.credit_tokens for endpoint in endpoints]
    longest = 1.2 * max(prompt_bytes) / 4
    step = CROWDING_WEIGHT * EXPECTED_OUTPUT_TOKENS * STEP_SLOPE
    crowding_ms = step * DEFAULT_STEP_MS * max(endpoint.credit_requests for endpoint in endpoints)
    pauses = 1 + longest * DEFAULT_PREFILL_MS_PER_TOKEN / (EXPECTED_OUTPUT_TOKENS * DEFAULT_STEP_MS)
    weights = 1 + INTERFERENCE_PER_REQUEST * INTERFERENCE_REQUEST_LIMIT * pauses + QUEUE_WEIGHT * QUEUE_LIMIT
    assert max(tokens) - min(tokens) <= longest * weights + crowding_ms / DEFAULT_PREFILL_MS_PER_TOKEN


def test_workers_that_decode_at_different_speeds_share_requests_in_proportion() -> None:
    # Prompts of no length cost t·(1.5 + L·(γ + β·δ·d)). With steps of 5 and 20 ms that is equal when the fast worker
    # has 318 more than four times the requests of the slow one.
    pool, policy, rng = WorkerPool(lease_ttl_s=1e6, ticket_ttl_s=1e6), build_policy("cost"), Random(1)
    for name, step_ms in (("fast", 5.0), ("slow", 20.0)):
        pool.handle(Registered(spec(name, capacity=Capacity(max_sequences=PICKS)), 1), 0.0)
        report = LoadReport(sequence=1, step_time_ms=step_ms, prefill_tokens_per_s=20_000)
        pool.handle(Reported(WorkerId(name), Epoch(1), report), 0.0)
    for number in range(600):
        facts = RouteFacts("r", MODEL, prompt_bytes=0)
        request = pool.pick_request(facts)
        decision = pick(request, pool.snapshot(MODEL, 0.0), policy, rng)
        assert isinstance(decision, Routed)
        pool.handle(Dispatched(Ticket(number), decision.endpoint.worker_id, request, facts), 0.0)
    fast, slow = (endpoint.credit_requests for endpoint in pool.endpoints())
    assert fast + slow == 600
    assert fast == pytest.approx(4 * slow + 318, abs=6)


def test_without_credit_the_same_picks_pile_up() -> None:
    pool, policy, rng = WorkerPool(lease_ttl_s=1e6, ticket_ttl_s=1e6), build_policy("cost"), Random(1)
    for number in range(WORKERS):
        pool.handle(Registered(spec(f"w{number}"), number), 0.0)
        load = LoadReport(sequence=1, queued_prompt_tokens=10 * number)
        pool.handle(Reported(WorkerId(f"w{number}"), Epoch(1), load), 0.0)
    request = pool.pick_request(RouteFacts("r", MODEL, 4000))
    decisions = [pick(request, pool.snapshot(MODEL, 0.0), policy, rng) for _ in range(100)]
    assert {decision.endpoint.worker_id for decision in decisions if isinstance(decision, Routed)} == {"w0"}
