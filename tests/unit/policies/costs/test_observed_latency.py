"""The cost `observed_latency`."""

from __future__ import annotations

from lbcore.policies.costs.observed_latency import ObservedLatency
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_what_was_seen_under_load_is_scaled_to_the_load_of_this_moment() -> None:
    seen_busy = worker("a", latency_ms=900, latency_requests=9, running=1)
    seen_alone = worker("b", latency_ms=150, latency_requests=1, running=1)
    assert costs(ObservedLatency(), prompt(), seen_busy, seen_alone) == [200, 300]


def test_a_worker_never_seen_is_as_fast_as_the_median_of_the_others() -> None:
    seen = [worker(f"w{ms}", latency_ms=ms, latency_requests=1, running=1) for ms in (100, 200, 900)]
    assert costs(ObservedLatency(), prompt(), *seen, worker("new", running=1)) == [200, 400, 1800, 400]


def test_a_new_worker_without_requests_is_tried_before_those_that_have_some() -> None:
    seen = [worker(f"w{ms}", latency_ms=ms, latency_requests=1, running=2) for ms in (100, 110, 120)]
    assert by_cost(ObservedLatency(), prompt(), *seen, worker("new"))[0] == "new"


def test_the_fastest_does_not_keep_all_traffic() -> None:
    fast = worker("fast", latency_ms=100, latency_requests=1, sent=5)
    slow = worker("slow", latency_ms=300, latency_requests=1, sent=1)
    assert costs(ObservedLatency(), prompt(), fast, slow) == [600, 600]


def test_where_nobody_was_seen_it_is_the_requests() -> None:
    assert costs(ObservedLatency(), prompt(), worker("a", running=2), worker("b", sent=1)) == [2, 1]
