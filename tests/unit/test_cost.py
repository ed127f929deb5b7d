"""What a request costs at a worker, in milliseconds."""

from __future__ import annotations

import pytest

from lbcore import cost
from lbcore.cost import DEFAULT_ATTENTION_RATIO, delays_ms, first_token_ms, prefill_ms
from lbcore.types import Capacity, Endpoint, LoadReport, PickRequest, Role, Snapshot, WorkerId
from tests.fleet import MODEL, endpoint

BIG = Capacity(max_sequences=1000)


def ttfts(request: PickRequest, *endpoints: Endpoint, now: float = 0.0) -> list[float]:
    return [first_token_ms(request, one, now) for one in endpoints]


def costs(request: PickRequest, *endpoints: Endpoint, now: float = 0.0, waiting: int = 0) -> list[float]:
    return delays_ms(request, endpoints, Snapshot(now, 0, endpoints, waiting_requests=waiting))


def alone_ms(tokens: int, cached: float = 0.0) -> float:
    return prefill_ms(0.1, DEFAULT_ATTENTION_RATIO, tokens, cached)


def test_an_idle_worker_takes_its_own_prefill() -> None:
    assert ttfts(PickRequest(MODEL, 1000), endpoint(prefill_ms_per_token=0.1)) == [pytest.approx(alone_ms(1000))]


def test_each_token_attends_to_those_before_it() -> None:
    assert alone_ms(1000) == pytest.approx(100 * (1 + DEFAULT_ATTENTION_RATIO * 500))
    assert alone_ms(100_000) == pytest.approx(10_000 * (1 + DEFAULT_ATTENTION_RATIO * 50_000))


def test_held_tokens_are_free_but_for_being_attended_to() -> None:
    request = PickRequest(MODEL, 100_000, {WorkerId("w0"): 99_000.0})
    held, new = ttfts(request, endpoint("w0"), endpoint("w1"))
    assert held == pytest.approx(100 * (1 + DEFAULT_ATTENTION_RATIO * 99_500))
    assert new == pytest.approx(alone_ms(100_000))


def test_tokens_in_front_are_reported_ones_and_credit() -> None:
    busy = endpoint(load=LoadReport(queued_prompt_tokens=300), credit_tokens=200)
    assert ttfts(PickRequest(MODEL), busy) == [pytest.approx(50)]


def test_what_is_queued_is_worked_off_as_time_goes_by() -> None:
    busy = endpoint(load=LoadReport(queued_prompt_tokens=1000))
    assert ttfts(PickRequest(MODEL), busy, now=0.06) == [pytest.approx(40)]
    assert ttfts(PickRequest(MODEL), busy, now=1.0) == [0.0]
    before, after = (costs(PickRequest(MODEL, 100), busy, now=now)[0] for now in (0.0, 0.06))
    assert before - after == pytest.approx(60)


def test_a_long_prompt_in_front_takes_longer_than_its_tokens_say() -> None:
    plain, long = (
        endpoint(load=LoadReport(queued_prompt_tokens=50_000, queued_prompt_pairs=pairs))
        for pairs in (0.0, 50_000**2 / 2)
    )
    short_ms, long_ms = ttfts(PickRequest(MODEL), plain, long)
    assert long_ms - short_ms == pytest.approx(0.1 * DEFAULT_ATTENTION_RATIO * 50_000**2 / 2)


def interference_ms(tokens: int, requests: int, recent_ms: float = 0.0) -> float:
    """What a prompt costs beyond its own prefill where so many decode in steps of 10 ms."""
    load = LoadReport(running_requests=requests, step_time_ms=10)
    one = endpoint(load=load, capacity=BIG, recent_ms=recent_ms)
    return costs(PickRequest(MODEL, tokens), one)[0] - costs(PickRequest(MODEL), one)[0] - alone_ms(tokens)


def test_a_prefill_counts_more_where_many_decode() -> None:
    pause = alone_ms(1000) / (cost.EXPECTED_OUTPUT_TOKENS * 10)
    expected = cost.INTERFERENCE_PER_REQUEST * alone_ms(1000) * pause
    assert interference_ms(1000, 0) == pytest.approx(0)
    assert interference_ms(1000, 10) == pytest.approx(10 * expected)
    assert interference_ms(1000, 30) == pytest.approx(30 * expected)


def test_a_pause_counts_by_its_part_of_an_answer() -> None:
    assert interference_ms(2000, 10) == pytest.approx(4 * interference_ms(1000, 10), rel=0.1)


def test_a_pause_is_worse_where_there_were_many_lately() -> None:
    rested, half, busy, busier = (interference_ms(1000, 10, share * 120_000) for share in (0, 0.5, 1, 2))
    more = 10 * cost.INTERFERENCE_PER_REQUEST * alone_ms(1000)
    assert half - rested == pytest.approx(more / 2)
    assert busy - rested == pytest.approx(more)
    assert busier == pytest.approx(busy)


def test_a_prefill_counts_more_where_hits_saved_much_lately() -> None:
    request, half_ms = PickRequest(MODEL, 1000), cost.SAVED_TAU_S * 1000 / 2
    cold, warm = costs(request, endpoint("w0"), endpoint("w1", saved_ms=half_ms))
    assert warm - cold == pytest.approx(cost.SAVED_WEIGHT * alone_ms(1000) / 2)


def test_a_hit_saves_what_no_other_worker_holds() -> None:
    def saved(**tokens: float) -> float:
        hit_tokens = {WorkerId(name): count for name, count in tokens.items()}
        return cost.saved_ms(PickRequest(MODEL, 5000, hit_tokens), endpoint("w0"))

    assert saved() == saved(w1=3000.0) == 0
    assert saved(w0=3000.0) == pytest.approx(alone_ms(3000))
    assert saved(w0=3000.0, w1=1000.0, w2=500.0) == pytest.approx(alone_ms(3000) - alone_ms(1000))
    assert saved(w0=3000.0, w1=3000.0) == saved(w0=1000.0, w1=3000.0, w2=500.0) == 0
    assert cost.saved_ms(PickRequest(MODEL, 5000, {WorkerId("w0"): 3000.0}, phase=Role.DECODE), endpoint("w0")) == 0


def test_interference_has_a_limit() -> None:
    full = [endpoint(load=LoadReport(running_requests=n), capacity=BIG) for n in (64, 500)]
    first, second = (costs(PickRequest(MODEL, 1000), one)[0] - costs(PickRequest(MODEL), one)[0] for one in full)
    assert first == pytest.approx(second)


def test_each_request_that_decodes_makes_a_further_one_dearer() -> None:
    few, many = (endpoint(load=LoadReport(running_requests=n, step_time_ms=10), capacity=BIG) for n in (1, 11))
    apart = 10 * cost.CROWDING_WEIGHT * cost.EXPECTED_OUTPUT_TOKENS * cost.STEP_SLOPE * 10
    first, second = costs(PickRequest(MODEL), few, many)
    assert second - first == pytest.approx(apart)


def test_slower_steps_cost_the_request_too() -> None:
    fast, slow = (endpoint(load=LoadReport(step_time_ms=step_ms)) for step_ms in (10, 20))
    first, second = costs(PickRequest(MODEL), fast, slow)
    assert second - first == pytest.approx(10 * (1 + cost.DECODING_WEIGHT * cost.EXPECTED_OUTPUT_TOKENS))


def test_a_hit_is_worth_more_where_requests_wait() -> None:
    request = PickRequest(MODEL, 1000, {WorkerId("w0"): 1000.0})
    fleet = endpoint("w0"), endpoint("w1")
    quiet, busy, busier = (costs(request, *fleet, waiting=waiting) for waiting in (0, 1, 1000))
    worth = [there - here for here, there in (quiet, busy, busier)]
    assert worth[0] == pytest.approx(alone_ms(1000))
    assert worth[1] == pytest.approx(worth[0] * (1 + cost.QUEUE_WEIGHT * 0.5))
    assert worth[2] == pytest.approx(worth[0] * (1 + cost.QUEUE_WEIGHT * cost.QUEUE_LIMIT))


def test_work_given_lately_counts_a_little() -> None:
    rested, busy = endpoint("w0"), endpoint("w1", recent_ms=1000.0)
    first, second = costs(PickRequest(MODEL, 100), rested, busy)
    assert second - first == pytest.approx(1000 * cost.BALANCE_WEIGHT)


def test_a_full_worker_makes_wait_for_a_slot() -> None:
    capacity = Capacity(max_sequences=4)
    loads = [LoadReport(running_requests=n, step_time_ms=10) for n in (3, 4, 5)]
    three, four, five = costs(PickRequest(MODEL), *(endpoint(load=load, capacity=capacity) for load in loads))
    one_slot = cost.EXPECTED_OUTPUT_TOKENS * 10 / 4
    crowding = cost.CROWDING_WEIGHT * cost.EXPECTED_OUTPUT_TOKENS * cost.STEP_SLOPE * 10
    assert four - three == pytest.approx(one_slot + crowding)
    assert five - four == pytest.approx(one_slot + crowding)


def test_a_prompt_that_does_not_fit_the_free_kv_blocks_waits_for_some() -> None:
    capacity = Capacity(max_sequences=100, kv_blocks=100, kv_block_size=16)
    load = LoadReport(running_requests=10, tokens_in_flight=1200, kv_used_blocks=75, step_time_ms=10)
    one = endpoint(load=load, capacity=capacity)
    fits, not_quite = (costs(PickRequest(MODEL, tokens), one)[0] for tokens in (400, 401))
    release_ms = cost.EXPECTED_OUTPUT_TOKENS * 10 / 1200
    assert not_quite - fits > release_ms


def test_a_worker_of_half_the_speed_costs_twice_as_much() -> None:
    load = LoadReport(queued_prompt_tokens=500)
    fast, slow = ttfts(
        PickRequest(MODEL, 1000), *(endpoint(load=load, prefill_ms_per_token=speed) for speed in (0.1, 0.2))
    )
    assert slow == pytest.approx(2 * fast)


def test_what_waits_in_the_scheduler_for_a_worker_is_in_front() -> None:
    request = PickRequest(MODEL, 100, held_ms={WorkerId("w0"): 70.0})
    here, there = costs(request, endpoint("w0"), endpoint("w1"))
    assert here - there == pytest.approx(70)
