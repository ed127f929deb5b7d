"""The cost `requests`."""

from __future__ import annotations

from lbcore.policies.costs.requests import Requests
from tests.unit.policies.workers import costs, prompt, worker


def test_running_queued_and_sent_requests_count_alike() -> None:
    workers = worker("a"), worker("b", running=2, queued=1), worker("c", sent=3)
    assert costs(Requests(), prompt(), *workers) == [0, 3, 3]
