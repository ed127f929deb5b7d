"""The picker `best`."""

from __future__ import annotations

from collections import Counter
from random import Random

from lbcore.policies.pickers.best import Best
from tests.fleet import snapshot


def test_the_cheapest_are_ranked_by_cost() -> None:
    assert Best().rank([5.0, 1.0, 4.0, 2.0, 3.0], 3, snapshot(), Random(0)) == [1, 3, 4]


def test_fewer_candidates_than_asked_for_are_all_ranked() -> None:
    assert Best().rank([2.0, 1.0], 4, snapshot(), Random(0)) == [1, 0]


def test_equals_are_equally_likely_in_every_place() -> None:
    costs = [2.0, 1.0, 2.0, 1.0, 2.0, 2.0]
    rng = Random(0)
    places = Counter(
        (place, index) for _ in range(4000) for place, index in enumerate(Best().rank(costs, 4, snapshot(), rng))
    )
    expected = {(place, index): 2000 for place in (0, 1) for index in (1, 3)}
    expected |= {(place, index): 1000 for place in (2, 3) for index in (0, 2, 4, 5)}
    assert places.keys() == expected.keys()
    # Five standard deviations of a binomial count of 4,000 are at most 5 · √(4000 / 4) = 158.
    assert all(abs(places[key] - count) < 158 for key, count in expected.items())
