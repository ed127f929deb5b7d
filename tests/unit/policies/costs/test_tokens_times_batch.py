"""The cost `tokens_times_batch`."""

from __future__ import annotations

from lbcore.policies.costs.tokens_times_batch import TokensTimesBatch
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_prefill_is_multiplied_by_the_batch_it_would_join() -> None:
    workers = worker("a", queued_tokens=100, sent_tokens=100, running=2, sent=1), worker("b")
    assert costs(TokensTimesBatch(), prompt(1000, a=500), *workers) == [700 * 4, 1000]


def test_a_worker_that_holds_all_of_the_prompt_is_not_free_of_cost() -> None:
    crowded, quiet = worker("crowded", running=50), worker("quiet", running=1)
    assert by_cost(TokensTimesBatch(), prompt(1000, crowded=1000, quiet=1000), crowded, quiet)[0] == "quiet"
    assert by_cost(TokensTimesBatch(), prompt(0), crowded, quiet)[0] == "quiet"
