"""The cost `hot_and_cold`."""

from __future__ import annotations

from lbcore.policies.costs.hot_and_cold import HotAndCold
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_the_fastest_comes_first_as_long_as_it_is_not_hot() -> None:
    slow = [worker(f"slow{number}", running=4, latency_ms=900, latency_requests=5) for number in range(6)]
    for running, first in ((4, True), (9, False)):
        fast = worker("fast", running=running, latency_ms=100, latency_requests=10)
        assert (by_cost(HotAndCold(), prompt(), *slow, fast)[0] == "fast") is first


def test_the_hot_ones_come_last_by_their_requests() -> None:
    hot = worker("hot", running=20, latency_ms=1, latency_requests=20), worker("hotter", running=30)
    cold = worker("cold", running=3, latency_ms=900, latency_requests=1)
    assert by_cost(HotAndCold(0.3), prompt(), *hot, cold) == ["cold", "hot", "hotter"]


def test_at_the_ends_of_the_quantile_only_requests_or_only_latencies_count() -> None:
    fast, idle = worker("fast", running=1, latency_ms=1, latency_requests=1), worker("idle", latency_ms=9)
    assert by_cost(HotAndCold(0), prompt(), fast, idle)[0] == "idle"
    assert by_cost(HotAndCold(1), prompt(), fast, idle)[0] == "fast"


def test_where_nobody_was_seen_it_is_the_requests() -> None:
    assert costs(HotAndCold(1), prompt(), worker("a", running=2), worker("b", sent=1)) == [2, 1]
