"""The cost `weighted_queue`."""

from __future__ import annotations

from lbcore.policies.costs.weighted_queue import WeightedQueue
from tests.unit.policies.workers import costs, prompt, worker


def test_a_waiting_request_counts_for_several_running_ones() -> None:
    assert costs(WeightedQueue(4), prompt(), worker("a", running=3, queued=2), worker("b", running=10)) == [11, 10]


def test_what_was_sent_since_the_last_report_waits() -> None:
    assert costs(WeightedQueue(), prompt(), worker("a", sent=2), worker("b", queued=2)) == [20, 20]
