"""The cost `uncached_tokens`."""

from __future__ import annotations

from lbcore.policies.costs.uncached_tokens import UncachedTokens
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_tokens_in_front_and_the_requests_own_count() -> None:
    workers = worker("a", queued_tokens=500, sent_tokens=300), worker("b")
    assert costs(UncachedTokens(), prompt(1000, a=600), *workers) == [1200, 1000]


def test_a_hit_is_worth_a_queue_as_long_as_itself() -> None:
    for in_front, first in ((599, "holder"), (601, "free")):
        workers = worker("holder", queued_tokens=in_front), worker("free")
        assert by_cost(UncachedTokens(), prompt(1000, holder=600), *workers)[0] == first
