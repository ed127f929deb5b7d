"""Where requests go while the scheduler cannot say."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from lbcore.standby import ASIDE_S, MAX_ASIDE_S, Standby
from lbcore.types import Capacity, EndpointState, LoadReport, WorkerId, WorkerStatus
from tests.fakes import ManualClock
from tests.fleet import MODEL, spec


def status(name: str, state: EndpointState = EndpointState.READY, sequences: int = 8) -> WorkerStatus:
    return WorkerStatus(spec(name, capacity=Capacity(max_sequences=sequences)), state, LoadReport())


class Scene:
    def __init__(self, *workers: WorkerStatus, missing: frozenset[WorkerId] = frozenset()) -> None:
        self.clock = ManualClock()
        self.standby = Standby(lambda: workers, lambda: missing, Random(1))

    def pick(self, *tried: str, model: str = MODEL, only_missing: bool = False) -> str | None:
        target = self.standby.pick(model, {*map(WorkerId, tried)}, self.clock.now(), only_missing=only_missing)
        return None if target is None else target.worker_id

    def picks(self, count: int = 200) -> Counter[str | None]:
        return Counter(self.pick() for _ in range(count))


def test_nobody_is_nobody() -> None:
    assert Scene().pick() is None
    assert Scene(status("w0", EndpointState.DRAINING), status("w1", EndpointState.UNREADY)).pick() is None
    assert Scene(status("w0")).pick(model="another") is None
    assert Scene(status("w0")).pick("w0") is None


def test_the_one_with_less_under_way_of_two_that_are_drawn() -> None:
    scene = Scene(*(status(f"w{number}") for number in range(4)))
    for _ in range(400):
        picked = scene.pick()
        assert picked is not None
        scene.standby.began(WorkerId(picked))
    counts = Counter({name: scene.standby._under_way[WorkerId(name)] for name in ("w0", "w1", "w2", "w3")})
    assert max(counts.values()) - min(counts.values()) <= 4


def test_larger_workers_get_more() -> None:
    scene = Scene(status("small", sequences=10), status("large", sequences=30))
    for _ in range(400):
        picked = scene.pick()
        assert picked is not None
        scene.standby.began(WorkerId(picked))
    assert scene.standby._under_way[WorkerId("large")] == pytest.approx(300, abs=2)


def test_what_is_over_does_not_count() -> None:
    scene = Scene(status("w0"), status("w1"))
    scene.standby.began(WorkerId("w0"))
    assert scene.picks() == {"w1": 200}
    scene.standby.ended(WorkerId("w0"))
    assert set(scene.picks()) == {"w0", "w1"}
    assert not scene.standby._under_way


def test_a_worker_that_could_not_be_reached_is_left_out_longer_each_time() -> None:
    scene = Scene(status("w0"), status("w1"))
    seconds = ASIDE_S
    for _ in range(8):
        scene.standby.lost(WorkerId("w0"), scene.clock.now())
        scene.clock.advance(seconds * 0.99)
        assert scene.picks() == {"w1": 200}
        scene.clock.advance(seconds * 0.02)
        assert "w0" in scene.picks()
        seconds = min(MAX_ASIDE_S, 2 * seconds)


def test_one_that_answers_is_as_good_as_new() -> None:
    scene = Scene(status("w0"), status("w1"))
    for _ in range(5):
        scene.standby.lost(WorkerId("w0"), scene.clock.now())
    scene.standby.answered(WorkerId("w0"))
    assert "w0" in scene.picks()
    scene.standby.lost(WorkerId("w0"), scene.clock.now())
    scene.clock.advance(ASIDE_S * 1.01)
    assert "w0" in scene.picks()


def test_with_all_of_them_left_out_any_is_better_than_none() -> None:
    scene = Scene(status("w0"), status("w1"))
    for name in ("w0", "w1"):
        scene.standby.lost(WorkerId(name), scene.clock.now())
    assert set(scene.picks()) == {"w0", "w1"}


def test_a_scheduler_that_has_just_begun_is_stood_in_for_where_it_has_not_heard_of_a_worker_yet() -> None:
    scene = Scene(status("w0"), status("w1"), missing=frozenset({WorkerId("w1")}))
    assert {scene.pick(only_missing=True) for _ in range(50)} == {"w1"}
    assert Scene(status("w0")).pick(only_missing=True) is None
