"""Milliseconds to the first token."""

from __future__ import annotations

import pytest

from lbcore.cost import DEFAULT_STEP_MS, EXPECTED_OUTPUT_TOKENS, first_token_ms
from lbcore.types import Capacity, Endpoint, LoadReport, PickRequest, WorkerId
from tests.fleet import MODEL, endpoint


def ttfts(request: PickRequest, endpoints: list[Endpoint]) -> list[float]:
    return [first_token_ms(request, one) for one in endpoints]


def test_an_idle_worker_takes_its_own_prefill() -> None:
    assert ttfts(PickRequest(MODEL, 1000), [endpoint(prefill_ms_per_token=0.1)]) == [pytest.approx(100)]


def test_held_tokens_are_free() -> None:
    request = PickRequest(MODEL, 1000, {WorkerId("w0"): 900})
    assert ttfts(request, [endpoint("w0"), endpoint("w1")]) == [pytest.approx(10), pytest.approx(100)]


def test_tokens_in_front_are_reported_ones_and_credit() -> None:
    busy = endpoint(load=LoadReport(queued_prompt_tokens=300), credit_tokens=200)
    assert ttfts(PickRequest(MODEL), [busy]) == [pytest.approx(50)]


def test_a_prefill_shares_the_worker_with_what_decodes() -> None:
    quiet, busy = endpoint(), endpoint(load=LoadReport(running_requests=20))
    alone, shared = ttfts(PickRequest(MODEL, 1000), [quiet, busy])
    assert shared == pytest.approx(2 * alone)


def test_interference_has_a_limit() -> None:
    capacity = Capacity(max_sequences=1000)
    full = [endpoint(load=LoadReport(running_requests=running), capacity=capacity) for running in (64, 500)]
    assert len(set(ttfts(PickRequest(MODEL, 1000), full))) == 1


def test_a_full_worker_makes_wait_for_a_slot() -> None:
    capacity = Capacity(max_sequences=4)
    costs = ttfts(
        PickRequest(MODEL),
        [endpoint(load=LoadReport(running_requests=n, step_time_ms=10), capacity=capacity) for n in (3, 4, 5)],
    )
    one_slot = EXPECTED_OUTPUT_TOKENS * 10 / 4
    assert costs == [pytest.approx(15), pytest.approx(15 + one_slot), pytest.approx(15 + 2 * one_slot)]


def test_the_step_that_computes_the_prompt_counts_and_half_of_the_one_that_runs() -> None:
    idle, busy = (endpoint(load=LoadReport(running_requests=n, step_time_ms=40)) for n in (0, 1))
    assert ttfts(PickRequest(MODEL), [idle, busy]) == [pytest.approx(40), pytest.approx(60)]


def test_an_unmeasured_step_is_assumed() -> None:
    full = endpoint(load=LoadReport(running_requests=1), capacity=Capacity(max_sequences=1))
    assert ttfts(PickRequest(MODEL), [full]) == [pytest.approx(EXPECTED_OUTPUT_TOKENS * DEFAULT_STEP_MS)]


def test_a_worker_of_half_the_speed_costs_twice_as_much() -> None:
    load = LoadReport(queued_prompt_tokens=500)
    fast, slow = (endpoint(load=load, prefill_ms_per_token=speed) for speed in (0.1, 0.2))
    fast_ms, slow_ms = ttfts(PickRequest(MODEL, 1000), [fast, slow])
    assert slow_ms == pytest.approx(2 * fast_ms)
