"""The cost `queued_tokens`."""

from __future__ import annotations

from lbcore.policies.costs.queued_tokens import QueuedTokens
from tests.unit.policies.workers import costs, prompt, worker


def test_tokens_queued_and_tokens_on_the_way_are_in_front() -> None:
    workers = worker("a", queued_tokens=500, sent_tokens=300), worker("b", tokens=9000)
    assert costs(QueuedTokens(), prompt(1000, a=1000), *workers) == [800, 0]
