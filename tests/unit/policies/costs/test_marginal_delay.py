"""The cost `marginal_delay`."""

from __future__ import annotations

import pytest

from lbcore.policies.costs.marginal_delay import MarginalDelay
from lbcore.types import LoadReport, PickRequest, WorkerId
from tests.fleet import MODEL, endpoint


def test_the_cost_of_an_empty_worker_is_the_time_to_the_first_token_in_milliseconds() -> None:
    holder = endpoint("holder", load=LoadReport(queued_prompt_tokens=500))
    request = PickRequest(MODEL, 1000, {WorkerId("holder"): 800})
    assert list(MarginalDelay().cost(request, [holder, endpoint("free")])) == pytest.approx([70, 100])


def test_of_two_workers_with_no_work_in_front_the_less_crowded_one_costs_less() -> None:
    crowded, quiet = (endpoint(load=LoadReport(running_requests=n, step_time_ms=10)) for n in (8, 2))
    crowded_cost, quiet_cost = MarginalDelay().cost(PickRequest(MODEL), [crowded, quiet])
    assert crowded_cost - quiet_cost == pytest.approx((8 - 2) * 10)


def test_a_worker_with_slower_steps_is_full_sooner() -> None:
    fast = endpoint(load=LoadReport(running_requests=7, step_time_ms=5))
    slow = endpoint(load=LoadReport(running_requests=1, step_time_ms=40))
    fast_cost, slow_cost = MarginalDelay().cost(PickRequest(MODEL), [fast, slow])
    assert fast_cost < slow_cost
