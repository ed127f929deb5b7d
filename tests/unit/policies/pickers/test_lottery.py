"""The picker `lottery`."""

from __future__ import annotations

from collections import Counter
from random import Random

from lbcore.policies.pickers.lottery import Lottery
from tests.fleet import snapshot


def draws(costs: list[float], count: int = 1, times: int = 4000) -> list[list[int]]:
    rng = Random(0)
    return [list(Lottery().rank(costs, count, snapshot(), rng)) for _ in range(times)]


def test_the_chance_is_in_proportion_to_what_is_below_0() -> None:
    picks = Counter(ranking[0] for ranking in draws([-1.0, -3.0, -4.0]))
    # Five standard deviations are at most 5 · √(4000 / 4) = 158.
    assert all(abs(picks[index] - 500 * share) < 158 for index, share in enumerate([1, 3, 4]))


def test_equals_are_equally_likely() -> None:
    for cost in (-1.0, 0.0, 7.0):
        picks = Counter(ranking[0] for ranking in draws([cost] * 4))
        # Five standard deviations: 5 · √(4000 · 1/4 · 3/4) = 137.
        assert all(abs(picks[index] - 1000) < 137 for index in range(4))


def test_what_is_not_below_0_comes_last_in_any_order() -> None:
    rankings = draws([0.0, -1.0, 5.0, -1e-9], count=4, times=100)
    assert {tuple(sorted(ranking[:2])) for ranking in rankings} == {(1, 3)}
    assert {tuple(ranking[2:]) for ranking in rankings} == {(0, 2), (2, 0)}


def test_the_second_is_drawn_among_the_others_by_their_worth() -> None:
    seconds = Counter(ranking[1] for ranking in draws([-1.0, -1.0, -1e9], count=2))
    assert abs(seconds[0] - 2000) < 158
    assert seconds[2] == 0
