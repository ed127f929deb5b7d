"""How fast workers are believed to be."""

from __future__ import annotations

import pytest

from lbcore.speeds import IDLE_S, Speeds
from lbcore.types import WorkerId

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
ALL = (A, B, C)


def speeds(**tokens_per_s: float) -> Speeds:
    made = Speeds()
    for name, speed in tokens_per_s.items():
        made.measured(WorkerId(name), speed)
    return made


def test_a_speed_is_told_in_tokens_per_second() -> None:
    assert speeds(a=4000).of(A) == 0.25


@pytest.mark.parametrize("nonsense", [0.0, -1.0, 1e-9, float("nan"), float("inf")])
def test_what_is_no_speed_changes_nothing(nonsense: float) -> None:
    known = speeds(a=4000)
    known.measured(A, nonsense)
    assert known.of(A) == 0.25


def test_there_is_a_speed_beyond_which_nobody_is_faster() -> None:
    assert speeds(a=1e9, b=1e30).middle(ALL) == 1e-6


def test_who_has_measured_nothing_is_like_those_in_the_middle() -> None:
    assert speeds(a=1000, b=2000).middle(ALL) == 0.75
    assert speeds().middle(ALL) is None


def test_who_is_gone_is_not_asked() -> None:
    known = speeds(a=1000, b=2000)
    known.forget(A)
    assert known.of(A) is None
    assert known.middle(ALL) == 0.5


def test_a_slow_worker_that_gets_nothing_comes_to_be_tried_again() -> None:
    known = speeds(a=100, b=10_000, c=10_000)
    believed = [known.rested(A, idle_s, "m", ALL, idle_s) for idle_s in (IDLE_S, IDLE_S + 30, IDLE_S + 300)]
    assert believed[0] == pytest.approx(10)
    assert believed[1] == pytest.approx(0.1 + 9.9 * 0.368, rel=0.01)
    assert believed[2] == pytest.approx(0.1, rel=0.01)


def test_a_fast_worker_stays_one() -> None:
    known = speeds(a=20_000, b=10_000, c=10_000)
    assert known.rested(A, 1e6, "m", ALL, 1e6) == 0.05


def test_those_in_the_middle_are_not_worked_out_for_each_report() -> None:
    known = speeds(a=100, b=10_000, c=10_000)
    before = known.rested(A, 1e6, "m", ALL, 100.0)
    known.measured(B, 5_000)
    known.measured(C, 5_000)
    assert known.rested(A, 1e6, "m", ALL, 100.5) == before
    assert known.rested(A, 1e6, "m", ALL, 101.0) == pytest.approx(0.2)
