"""The cost `tokens_in_flight`."""

from __future__ import annotations

from lbcore.policies.costs.tokens_in_flight import TokensInFlight
from tests.unit.policies.workers import costs, prompt, worker


def test_reported_tokens_and_those_on_the_way_count() -> None:
    workers = worker("a", tokens=500, sent_tokens=300, running=1), worker("b", tokens=700, running=60)
    assert costs(TokensInFlight(), prompt(), *workers) == [800, 700]
