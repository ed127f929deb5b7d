"""The scorer `queue`."""

from __future__ import annotations

from lbcore.policies.scorers.queue import Queue
from tests.unit.policies.workers import prompt, worker


def test_the_shortest_queue_scores_1_and_the_longest_0() -> None:
    workers = worker("a", queued=2), worker("b", queued=1, sent=2), worker("c", sent=6, running=9)
    assert Queue().score(prompt(), workers) == [1.0, 0.75, 0.0]


def test_equal_queues_score_1() -> None:
    assert Queue().score(prompt(), [worker("a", queued=2), worker("b", sent=2)]) == [1.0, 1.0]
