"""The picker `round_robin`."""

from __future__ import annotations

from random import Random

import pytest

from lbcore.policies.pickers.round_robin import RoundRobin
from tests.fleet import snapshot


@pytest.mark.parametrize(("pick_count", "expected"), [(0, [0, 1]), (2, [2, 0]), (7, [1, 2])])
def test_turns_go_round_by_the_number_of_picks(pick_count: int, expected: list[int]) -> None:
    assert RoundRobin().rank([0.0] * 3, 2, snapshot(pick_count=pick_count), Random(0)) == expected


def test_a_cycle_gives_everybody_one_turn() -> None:
    turns = [RoundRobin().rank([0.0] * 5, 1, snapshot(pick_count=count), Random(0))[0] for count in range(5)]
    assert sorted(turns) == [0, 1, 2, 3, 4]
