"""When an answer counts as stalled, and who is looked at."""

from __future__ import annotations

import asyncio

import pytest

from lbcore import stalls
from lbcore.stalls import Progress, StallWatch
from tests.fakes import ManualClock


def test_an_answer_of_which_nothing_comes_for_longer_than_the_least_gap_has_stalled() -> None:
    progress = Progress(1, 0.0, 5.0)
    assert not progress.is_stalled(1, False, 1, 5.0)
    assert progress.is_stalled(1, False, 1, 5.1)


def test_what_comes_between_two_looks_is_progress() -> None:
    progress = Progress(1, 0.0, 5.0)
    assert not progress.is_stalled(300, False, 300, 6.0)
    assert not progress.is_stalled(300, False, 300, 11.0)
    assert progress.is_stalled(300, False, 300, 11.1)


def test_one_that_is_slow_by_nature_has_twenty_times_its_own_gap() -> None:
    progress = Progress(1, 0.0, 5.0)
    for beats in range(2, 11):
        progress.moved(beats, beats - 1.0)
    assert not progress.is_stalled(10, False, 10, 29.0)
    assert progress.is_stalled(10, False, 10, 29.1)


def test_many_tokens_that_come_together_are_many() -> None:
    progress = Progress(1, 0.0, 0.5)
    progress.moved(2, 1.0)
    assert not progress.is_stalled(2, False, 101, 1.5)
    assert progress.is_stalled(2, False, 101, 1.6)


def test_one_that_this_side_does_not_take_does_not_stall() -> None:
    progress = Progress(1, 0.0, 5.0)
    for second in range(100):
        assert not progress.is_stalled(1, True, 21, float(second))
    assert not progress.is_stalled(1, False, 21, 198.0)
    assert progress.is_stalled(1, False, 21, 198.1)


class Answer:
    def __init__(self) -> None:
        self.looks: list[float] = []
        self.drops: list[tuple[StallWatch, Answer]] = []

    def look(self, now: float) -> None:
        self.looks.append(now)
        for watch, other in self.drops:
            watch.drop(other)


async def test_all_are_looked_at_until_they_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "LOOK_S", 0.0)
    watch, one, other, late = StallWatch(ManualClock()), Answer(), Answer(), Answer()
    one.drops = [(watch, one), (watch, other)]
    watch.add(one)
    watch.add(other)
    await asyncio.sleep(0.001)
    assert (len(one.looks), len(other.looks)) == (1, 0)
    watch.add(late)
    while len(late.looks) < 2:
        await asyncio.sleep(0)
    watch.drop(late)
    assert len(one.looks) == 1
