"""The cost `marginal_delay`."""

from __future__ import annotations

import pytest

from lbcore.policies.costs.marginal_delay import MarginalDelay
from lbcore.types import LoadReport
from tests.fleet import endpoint
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_the_cost_of_an_empty_worker_is_the_time_to_the_first_token_in_milliseconds() -> None:
    workers = worker("holder", wait_ms=50), worker("free")
    assert costs(MarginalDelay(), prompt(1000, holder=800), *workers) == pytest.approx([70, 100])


def test_of_two_workers_with_no_work_in_front_the_less_crowded_one_costs_less() -> None:
    workers = [endpoint(f"w{count}", load=LoadReport(running_requests=count, step_time_ms=10)) for count in (8, 2)]
    assert by_cost(MarginalDelay(), prompt(0), *workers) == ["w2", "w8"]


def test_a_worker_with_slower_steps_is_full_sooner() -> None:
    fast = endpoint("fast", load=LoadReport(running_requests=7, step_time_ms=5))
    slow = endpoint("slow", load=LoadReport(running_requests=1, step_time_ms=40))
    assert by_cost(MarginalDelay(), prompt(0), fast, slow) == ["fast", "slow"]
