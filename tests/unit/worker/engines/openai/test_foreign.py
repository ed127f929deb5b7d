"""Strangers are told from ourselves, and never invented out of old numbers."""

from __future__ import annotations

from random import Random

import pytest

from worker.engines.openai.foreign import Crowd, Foreign
from worker.engines.openai.page import Page


def look_twice(crowd: Crowd, page: Page, ours_queued: int, now: float) -> Foreign:
    crowd.look(page, ours_queued, now)
    crowd.look(page, ours_queued, now)
    return crowd.foreign


def test_what_is_ours_is_not_foreign() -> None:
    crowd = Crowd(0.5)
    crowd.change(3, 1.0)
    assert look_twice(crowd, Page(2, 1), 1, 2.0) == Foreign(0, 0)
    assert look_twice(crowd, Page(6, 4), 1, 3.0) == Foreign(4, 3)
    assert look_twice(crowd, Page(6, 1), 0, 4.0) == Foreign(3, 1)
    assert crowd.foreign.requests == 4


def test_one_look_is_not_enough() -> None:
    crowd = Crowd(0.5)
    crowd.look(Page(5, 0), 0, 1.0)
    assert crowd.foreign == Foreign()
    crowd.look(Page(4, 0), 0, 2.0)
    assert crowd.foreign == Foreign(4, 0)
    crowd.look(Page(0, 0), 0, 3.0)
    assert crowd.foreign == Foreign()


@pytest.mark.parametrize("lag_s", [0.5, 10.0])
def test_what_we_had_a_moment_ago_is_still_ours(lag_s: float) -> None:
    crowd = Crowd(lag_s)
    crowd.change(8, 1.0)
    crowd.change(-8, 100.0)
    assert look_twice(crowd, Page(8, 0), 0, 100.0 + 0.9 * lag_s) == Foreign()
    assert look_twice(crowd, Page(8, 0), 0, 100.0 + 1.1 * lag_s) == Foreign(8, 0)


def test_a_server_that_is_gone_has_no_strangers() -> None:
    crowd = Crowd(0.5)
    assert look_twice(crowd, Page(5, 0), 0, 1.0).running == 5
    crowd.forget()
    assert crowd.foreign == Foreign()
    assert Crowd(0.5).ours == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_most_we_had_is_remembered_exactly(seed: int) -> None:
    rng = Random(seed)
    crowd, now, history = Crowd(2.0), 0.0, [(0.0, 0)]
    for _ in range(200):
        now += rng.choice([0.0, 0.1, 0.7, 3.0])
        crowd.change(rng.randint(-crowd.ours, 5), now)
        history.append((now, crowd.ours))
        later = now + rng.choice([0.0, 0.3])
        held = [
            ours
            for (_, ours), (until, _) in zip(history, [*history[1:], (later, 0)], strict=True)
            if until >= later - 2.0
        ]
        crowd.forget()
        assert look_twice(crowd, Page(1000, 0), 0, later).running == 1000 - max(held)
