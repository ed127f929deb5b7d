"""The cost `requests_per_speed`."""

from __future__ import annotations

import pytest

from lbcore.policies.costs.requests_per_speed import RequestsPerSpeed
from tests.unit.policies.workers import costs, prompt, worker


def test_a_worker_twice_as_fast_may_have_twice_as_many_requests() -> None:
    workers = worker("fast", running=6, speed=4), worker("slow", running=3, speed=2)
    assert costs(RequestsPerSpeed(), prompt(), *workers) == [1.5, 1.5]


def test_a_worker_that_declares_nothing_is_as_fast_as_the_mean() -> None:
    workers = worker("a", running=6, speed=4), worker("b", running=6, speed=2), worker("c", running=6)
    assert costs(RequestsPerSpeed(), prompt(), *workers) == [1.5, 3, 2]


def test_where_nobody_declares_anything_it_is_the_requests() -> None:
    assert costs(RequestsPerSpeed(), prompt(), worker("a", sent=2), worker("b", queued=5)) == [2, 5]


@pytest.mark.parametrize("nonsense", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_speed_that_is_none_counts_as_not_declared(nonsense: float) -> None:
    workers = worker("busy", running=9, speed=nonsense), worker("quiet", running=1, speed=2)
    assert costs(RequestsPerSpeed(), prompt(), *workers) == [4.5, 0.5]
