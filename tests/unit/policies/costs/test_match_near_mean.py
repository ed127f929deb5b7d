"""The cost `match_near_mean`."""

from __future__ import annotations

from lbcore.policies.costs.match_near_mean import MatchNearMean
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_who_holds_the_most_and_is_near_the_mean_comes_first() -> None:
    # Mean 4, standard deviation 2.12.
    workers = worker("most", running=7), worker("much", running=5), worker("some", running=2), worker("none", running=2)
    assert by_cost(MatchNearMean(), prompt(1000, most=1000, much=900, some=400), *workers)[0] == "much"
    assert by_cost(MatchNearMean(deviations=2), prompt(1000, most=1000, much=900), *workers)[0] == "most"


def test_of_equal_matches_the_one_with_fewer_requests_comes_first() -> None:
    workers = worker("a", running=2), worker("b", running=1), worker("c")
    assert by_cost(MatchNearMean(), prompt(1000, a=900, b=900), *workers)[0] == "b"


def test_beyond_the_gap_only_the_requests_count() -> None:
    for running, first in ((8, "holder"), (9, "b")):
        others = worker("b"), worker("c", running=running)
        holder = worker("holder", running=1)
        assert by_cost(MatchNearMean(), prompt(1000, holder=1000), holder, *others)[0] == first


def test_when_nobody_near_the_mean_holds_anything_it_is_the_requests() -> None:
    workers = worker("holder", running=6), worker("b", running=1), worker("c", running=2)
    assert costs(MatchNearMean(), prompt(1000, holder=1000), *workers) == [6, 1, 2]
    assert costs(MatchNearMean(), prompt(1000), *workers) == [6, 1, 2]
