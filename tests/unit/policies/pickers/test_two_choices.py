"""The picker `two_choices`."""

from __future__ import annotations

from collections import Counter
from random import Random

from lbcore.policies.pickers.two_choices import TwoChoices
from tests.fleet import snapshot


def test_of_two_the_cheaper_is_taken() -> None:
    assert TwoChoices().rank([2.0, 1.0], 2, snapshot(), Random(0)) == [1, 0]


def test_the_dearest_is_taken_only_when_it_is_alone() -> None:
    rng = Random(0)
    picks = Counter(TwoChoices().rank([1.0, 2.0, 3.0], 1, snapshot(), rng)[0] for _ in range(3000))
    # The cheapest is in two of three pairs, the middle one is the cheaper in one; five standard deviations are 130.
    assert abs(picks[0] - 2000) < 130
    assert picks[2] == 0
    assert TwoChoices().rank([9.0], 4, snapshot(), Random(0)) == [0]


def test_fallbacks_are_ranked_by_cost() -> None:
    pick, *others = TwoChoices().rank([4.0, 1.0, 3.0, 2.0], 4, snapshot(), Random(3))
    assert others == sorted(others, key=[4.0, 1.0, 3.0, 2.0].__getitem__)
    assert {pick, *others} == {0, 1, 2, 3}


def test_equals_share() -> None:
    rng = Random(0)
    picks = Counter(TwoChoices().rank([1.0] * 4, 4, snapshot(), rng)[0] for _ in range(4000))
    assert all(abs(picks[index] - 1000) < 137 for index in range(4))
