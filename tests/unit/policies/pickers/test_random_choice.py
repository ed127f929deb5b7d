"""The picker `random_choice`."""

from __future__ import annotations

from collections import Counter
from random import Random

from lbcore.policies.pickers.random_choice import RandomChoice
from tests.fleet import snapshot


def test_everybody_is_as_likely_whatever_the_cost() -> None:
    rng = Random(0)
    picks = Counter(RandomChoice().rank([0.0, 9.0, 99.0, 999.0], 1, snapshot(), rng)[0] for _ in range(4000))
    # Five standard deviations: 5 · √(4000 · 1/4 · 3/4) = 137.
    assert all(abs(picks[index] - 1000) < 137 for index in range(4))
