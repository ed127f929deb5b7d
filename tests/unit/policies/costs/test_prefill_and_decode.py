"""The cost `prefill_and_decode`."""

from __future__ import annotations

from lbcore.policies.costs.prefill_and_decode import PrefillAndDecode
from tests.unit.policies.workers import costs, prompt, worker


def test_prefill_in_front_own_prefill_and_context_add_up() -> None:
    workers = worker("a", queued_tokens=100, sent_tokens=20, tokens=3000), worker("b")
    assert costs(PrefillAndDecode(), prompt(1000, a=400), *workers) == [100 + 20 + 600 + 3000 + 20, 1000]


def test_prefill_can_count_for_more_than_context() -> None:
    workers = worker("a", queued_tokens=100), worker("b", tokens=100)
    assert costs(PrefillAndDecode(2), prompt(1000), *workers) == [2200, 2100]
