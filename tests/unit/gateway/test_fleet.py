"""What the gateway knows of the workers: the scheduler's table, followed step by step, kept while it is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from random import Random
from typing import Any

import pytest

import gateway.fleet
from gateway.fleet import Fleet
from lbcore.errors import NoReadyWorker
from lbcore.types import EndpointState, Epoch, LoadReport, ServedModel, WorkerId, WorkerSpec, WorkerStatus
from lbcore.wire.routing_client import TableStep
from tests.fakes import Signal


def status(
    name: str,
    *models: ServedModel,
    state: EndpointState = EndpointState.READY,
    epoch: int = 1,
) -> WorkerStatus:
    spec = WorkerSpec(WorkerId(name), Epoch(epoch), f"{name}:8000", models or (ServedModel("m"),))
    return WorkerStatus(spec, state, LoadReport())


def snapshot(*workers: WorkerStatus) -> TableStep:
    return TableStep(True, workers, ())


def change(*workers: WorkerStatus, removed: tuple[str, ...] = ()) -> TableStep:
    return TableStep(False, workers, tuple(map(WorkerId, removed)))


def fleet_of(*steps: TableStep) -> Fleet:
    fleet = Fleet(lambda alive: None)
    for step in steps:
        fleet.take(step)
    return fleet


def test_a_fleet_that_was_told_nothing_is_not_ready_and_serves_nothing() -> None:
    fleet = fleet_of()
    assert not fleet.ready
    assert fleet.models() == {}
    assert not fleet.serves("m")


def test_one_ready_worker_makes_the_fleet_ready() -> None:
    fleet = fleet_of(snapshot(status("w0", state=EndpointState.DRAINING), status("w1")))
    assert fleet.ready


def test_draining_and_silent_workers_alone_do_not() -> None:
    states = (EndpointState.DRAINING, EndpointState.SILENT)
    assert not fleet_of(snapshot(*(status(state.value, state=state) for state in states))).ready


def test_models_and_adapters_are_listed_with_when_they_were_loaded_first() -> None:
    old = status("w0", ServedModel("m", ("tuned",), created_unix_s=50))
    new = status("w1", ServedModel("m", created_unix_s=90), ServedModel("other", created_unix_s=70))
    assert fleet_of(snapshot(new, old)).models() == {"m": 50, "tuned": 50, "other": 70}


def test_adapters_are_served_by_their_own_name() -> None:
    fleet = fleet_of(snapshot(status("w0", ServedModel("m", ("tuned",)))))
    assert fleet.serves("tuned")
    assert not fleet.serves("")


def test_changes_are_followed() -> None:
    fleet = fleet_of(
        snapshot(status("w0", ServedModel("a"))),
        change(status("w1", ServedModel("b"))),
        change(status("w0", ServedModel("c"), epoch=2)),
        change(removed=("w1", "nobody")),
    )
    assert set(fleet.models()) == {"c"}


def test_a_worker_that_is_gone_and_back_in_one_step_is_there() -> None:
    fleet = fleet_of(snapshot(status("w0")), change(status("w0", epoch=2), removed=("w0",)))
    assert fleet.ready


def test_a_snapshot_leaves_who_is_not_in_it_listed_for_a_while() -> None:
    fleet = fleet_of(snapshot(status("w0", ServedModel("a"))), snapshot(status("w1", ServedModel("b"))))
    assert set(fleet.models()) == {"a", "b"}
    assert fleet.missing == {"w0"}
    fleet.give_up_missing()
    assert fleet.models() == {"b": 0}
    assert not fleet.missing


def test_who_is_heard_of_again_is_not_missing() -> None:
    fleet = fleet_of(snapshot(status("w0"), status("w1"), status("w2")), snapshot(), change(status("w1", epoch=2)))
    fleet.take(change(removed=("w2",)))
    assert fleet.missing == {"w0"}
    assert [one.spec.worker_id for one in fleet.workers()] == ["w0", "w1"]
    fleet.give_up_missing()
    assert [one.spec.worker_id for one in fleet.workers()] == ["w1"]


def test_every_step_tells_who_is_alive() -> None:
    told: list[Mapping[str, Epoch]] = []
    fleet = Fleet(told.append)
    fleet.take(snapshot(status("w0"), status("w1")))
    fleet.take(change(status("w1", epoch=2), removed=("w0",)))
    assert told == [{"w0:8000": 1, "w1:8000": 1}, {"w1:8000": 2}]


class FakeRouting:
    """A scheduler whose every watch tells some steps and then ends: in an error, well, or never."""

    def __init__(self, *watches: tuple[list[TableStep], str]) -> None:
        self._watches = list(watches)
        self.happened = Signal()

    async def watch(self) -> AsyncIterator[TableStep]:
        steps, end = self._watches.pop(0)
        for step in steps:
            yield step
        self.happened.tell()
        if end == "error":
            raise NoReadyWorker("The scheduler cannot be reached.")
        if end == "never":
            await asyncio.get_running_loop().create_future()

    @property
    def is_spent(self) -> bool:
        return not self._watches


async def follow(fleet: Fleet, routing: Any) -> None:
    """Follows until the last watch has told its steps."""
    following = asyncio.ensure_future(fleet.follow(routing, Random(0)))
    await routing.happened.until(lambda: routing.is_spent)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_watch_that_breaks_leaves_the_table_and_is_taken_up_again() -> None:
    fleet = Fleet(lambda alive: None)
    await follow(fleet, FakeRouting(([snapshot(status("w0"))], "error"), ([], "never")))
    assert fleet.ready
    assert not fleet.connected


async def test_a_watch_that_ends_well_is_taken_up_again_too() -> None:
    fleet = Fleet(lambda alive: None)
    steps = [snapshot(status("w0", ServedModel("a")))], [snapshot(status("w1", ServedModel("b")))]
    await follow(fleet, FakeRouting((steps[0], "well"), (steps[1], "never")))
    assert set(fleet.models()) == {"a", "b"}
    assert fleet.connected


async def test_who_does_not_come_back_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.fleet, "MISSING_S", 0.0)
    fleet = Fleet(lambda alive: None)
    steps = [snapshot(status("w0", ServedModel("a")))], [snapshot(status("w1", ServedModel("b")))]
    await follow(fleet, FakeRouting((steps[0], "well"), (steps[1], "never")))
    await asyncio.sleep(0.001)
    assert fleet.models() == {"b": 0}
