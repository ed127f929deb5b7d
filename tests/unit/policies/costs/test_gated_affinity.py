"""The cost `gated_affinity`."""

from __future__ import annotations

from lbcore.policies.costs.gated_affinity import GatedAffinity
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_a_holder_comes_first_however_many_tokens_it_has() -> None:
    workers = worker("free"), worker("holder", tokens=50_000)
    assert by_cost(GatedAffinity(), prompt(1000, holder=800), *workers) == ["holder", "free"]


def test_of_two_holders_the_one_with_fewer_tokens_comes_first() -> None:
    workers = worker("a", tokens=500, sent_tokens=10), worker("b", tokens=500), worker("c")
    assert by_cost(GatedAffinity(), prompt(1000, a=1000, b=1000), *workers) == ["b", "a", "c"]


def test_who_holds_too_little_is_no_holder() -> None:
    workers = worker("free"), worker("some", tokens=900)
    assert costs(GatedAffinity(), prompt(1000, some=799), *workers) == [1000, 1101]


def test_a_holder_is_left_when_the_first_token_would_come_too_late() -> None:
    # Elsewhere it takes 100 ms to compute the prompt, at the holder none.
    for wait_ms, first in ((5099, "holder"), (5101, "free")):
        workers = worker("free"), worker("holder", tokens=5000, wait_ms=wait_ms)
        assert by_cost(GatedAffinity(), prompt(1000, holder=1000), *workers)[0] == first


def test_one_late_holder_does_not_open_the_gate_of_another() -> None:
    workers = worker("free"), worker("late", wait_ms=9000, tokens=5), worker("near", wait_ms=4000, tokens=5000)
    assert by_cost(GatedAffinity(), prompt(1000, late=1000, near=1000), *workers)[0] == "near"


def test_a_prefix_that_everybody_holds_attracts_to_nobody() -> None:
    assert costs(GatedAffinity(), prompt(1000, a=1000, b=900), worker("a", tokens=7), worker("b")) == [7, 100]
