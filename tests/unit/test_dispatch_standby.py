"""Requests go on being served while the scheduler is lost, or has just begun and knows nobody."""

from __future__ import annotations

from typing import Any

import pytest

from lbcore.errors import LoadBalancerError, ModelNotFound, NoReadyWorker, Saturated, SchedulerLost
from lbcore.generation import Delta, Failed, Finished, FinishReason
from lbcore.types import Target, WorkerId
from tests.unit.dispatch_scene import UNREACHABLE, FakeRouting, FakeWorkers, Scene, route, target

A, STOP = Delta(text="a", token_ids=(1,)), Delta(finish_reason=FinishReason.STOP)
GOOD = [[A], [STOP, Finished(10, 0, 1)]]
LOST = SchedulerLost("The scheduler cannot be reached.")


class Names:
    """A standby that names one worker after the other, and notes what it hears."""

    def __init__(self, *names: str) -> None:
        self._names = list(names)
        self.asked: list[tuple[set[str], bool]] = []
        self.heard: list[str] = []

    def pick(self, model: str, tried: frozenset[WorkerId], now: float, *, only_missing: bool) -> Target | None:
        self.asked.append(({*tried}, only_missing))
        return target(self._names.pop(0)) if self._names else None

    def __getattr__(self, name: str) -> Any:
        return lambda worker_id, *now: self.heard.append(f"{name} {worker_id}")


def scene(standby: Names, *answers: Any, **workers: Any) -> Scene:
    one = Scene(FakeRouting(*answers), FakeWorkers(**workers))
    one.dispatcher.standby = standby  # type: ignore[assignment]
    return one


async def test_without_a_scheduler_the_standby_names_a_worker() -> None:
    standby = Names("w0")
    one = scene(standby, LOST, w0=GOOD)
    await one.read()
    assert standby.asked == [(set(), False)]
    assert standby.heard == ["began w0", "answered w0", "ended w0"]
    assert one.workers.calls["w0"].request.ticket == 0


async def test_one_that_cannot_be_reached_is_replaced_by_another() -> None:
    standby = Names("w0", "w1")
    one = scene(standby, LOST, LOST, w0=[[Failed(UNREACHABLE)]], w1=GOOD)
    await one.read()
    assert standby.asked == [(set(), False), ({"w0"}, False)]
    assert "lost w0" in standby.heard


async def test_an_answer_goes_on_without_a_scheduler_too() -> None:
    standby = Names("w1")
    one = scene(standby, route("w0", 1), LOST, w0=[[A], [Failed(UNREACHABLE)]], w1=GOOD)
    await one.read(may_continue=True)
    assert [event.text for event in one.events if isinstance(event, Delta)] == ["a", "a", ""]
    assert standby.asked == [({"w0"}, False)]


@pytest.mark.parametrize("refusal", [NoReadyWorker("Nobody."), ModelNotFound("No such model.")])
async def test_of_one_that_has_just_begun_only_those_it_does_not_know_are_asked(refusal: LoadBalancerError) -> None:
    standby = Names("w0")
    one = scene(standby, refusal, w0=GOOD)
    await one.read()
    assert standby.asked == [(set(), True)]


async def test_a_full_fleet_is_not_asked_behind_its_back() -> None:
    standby, full = Names("w0"), Saturated("Full.")
    assert await scene(standby, full).fail() is full
    assert not standby.asked


async def test_with_nobody_to_stand_in_its_word_is_final() -> None:
    assert await scene(Names(), LOST).fail() is LOST


async def test_no_more_are_tried_than_with_a_scheduler() -> None:
    failing: dict[str, Any] = {f"w{number}": [[Failed(UNREACHABLE)]] for number in range(5)}
    one = scene(Names(*failing), *[LOST] * 5, **failing)
    await one.fail()
    assert len(one.workers.calls) == 3
