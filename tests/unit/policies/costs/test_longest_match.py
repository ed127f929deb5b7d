"""The cost `longest_match`."""

from __future__ import annotations

from lbcore.policies.costs.longest_match import LongestMatch
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_who_holds_the_most_comes_first_and_the_others_by_their_requests() -> None:
    workers = worker("most", running=60), worker("some", running=2), worker("none", running=1)
    assert by_cost(LongestMatch(), prompt(1000, most=900, some=899), *workers) == ["most", "none", "some"]


def test_of_those_that_hold_equally_much_the_one_with_fewer_requests_comes_first() -> None:
    workers = worker("a", running=3), worker("b", running=2), worker("c")
    assert by_cost(LongestMatch(), prompt(1000, a=900, b=900), *workers) == ["b", "a", "c"]


def test_a_match_of_no_more_than_the_threshold_is_none() -> None:
    for held, first in ((300, "free"), (301, "holder")):
        workers = worker("free"), worker("holder", running=1)
        assert by_cost(LongestMatch(), prompt(1000, holder=held), *workers)[0] == first


def test_out_of_balance_only_the_requests_count() -> None:
    for running, first in ((64, "holder"), (65, "free")):
        workers = worker("free"), worker("holder", running=running)
        assert by_cost(LongestMatch(), prompt(1000, holder=1000), *workers)[0] == first
    assert costs(LongestMatch(), prompt(1000, a=1000), worker("a", running=300), worker("b", running=199)) == [300, 199]
