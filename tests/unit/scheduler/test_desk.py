"""Requests that wait in the scheduler: in which order they are served, and that each hears once or is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import generate_latest

from lbcore.errors import DeadlineExceeded, LoadBalancerError, ModelNotFound, NoReadyWorker, RateLimited, Saturated
from lbcore.pool_events import Deregistered
from lbcore.router import QueueLimits
from lbcore.scheduler.app import serve_waiting
from lbcore.types import Capacity, Epoch, Route, WorkerId
from tests.fakes import settle
from tests.fleet import MODEL, ROOMY
from tests.unit.scheduler.waiting_hall import AT_ONCE, Asker, Hall


@pytest.fixture
def hall() -> Hall:
    """One worker that takes one request at a time."""
    return Hall("w0")


def test_a_request_waits_for_a_full_worker_and_is_served_when_a_report_frees_it(hall: Hall) -> None:
    first, second = hall.ask(), hall.ask()
    assert second.waits
    assert hall.waiting == 1
    assert hall.credit[0] == 1
    hall.finish(first)
    hall.serve()
    assert second.route.target.worker_id == "w0"
    assert second.route.ticket != first.route.ticket
    assert (hall.waiting, hall.credit[0]) == (0, 1)


def test_a_ticket_that_is_given_back_makes_room_for_who_waits(hall: Hall) -> None:
    first, second = hall.ask(), hall.ask()
    hall.release(first)
    hall.serve()
    assert second.route


def test_a_worker_that_joins_serves_who_waits(hall: Hall) -> None:
    hall.ask()
    second = hall.ask()
    hall.join("w1")
    hall.serve()
    assert second.route.target.worker_id == "w1"


def test_nobody_is_told_by_an_event_itself(hall: Hall) -> None:
    first, second = hall.ask(), hall.ask()
    hall.finish(first)
    assert second.waits


def test_who_comes_does_not_overtake_who_waits(hall: Hall) -> None:
    first = hall.ask("first")
    hall.ask("waits")
    hall.finish(first)
    late = hall.ask("late")
    assert hall.order == ["first", "waits"]
    assert late.waits


def test_a_worker_with_enough_prefill_in_front_of_it_gets_no_more_until_some_is_done() -> None:
    hall = Hall("w0", limits=QueueLimits(), capacity=ROOMY)
    # A second and more of prefill, which lets shorter ones come first for a moment.
    first = hall.ask(prompt_bytes=40_000)
    hall.sleep()
    assert first.route
    second = hall.ask()
    assert second.waits
    wake = hall.serve()
    assert wake is not None
    assert 0.5 < wake - hall.clock.now() < 1.5
    hall.clock.advance(wake - hall.clock.now() - 0.01)
    hall.serve()
    assert second.waits
    hall.clock.advance(0.01)
    assert hall.serve() is None
    assert second.route


def test_who_waits_until_its_time_is_over_hears_so(hall: Hall) -> None:
    hall.ask()
    second, patient = hall.ask(timeout_s=5.0), hall.ask()
    wake = hall.serve()
    assert wake == pytest.approx(hall.clock.now() + 5.0, abs=1e-3)
    hall.clock.advance(wake - hall.clock.now())
    assert hall.serve() is None
    assert isinstance(second.error, DeadlineExceeded)
    assert patient.waits


def test_the_urgent_are_served_first(hall: Hall) -> None:
    running = hall.ask("running")
    askers = {str(priority): hall.ask(str(priority), priority=priority) for priority in (0, -5, 7, 3)}
    for name in ("7", "3", "0", "-5"):
        hall.finish(running)
        hall.serve()
        running = askers[name]
        assert running.heard
    assert hall.order == ["running", "7", "3", "0", "-5"]


def test_tenants_are_served_in_turn(hall: Hall) -> None:
    running = hall.ask("running")
    askers = {name: hall.ask(name, tenant=name[0]) for name in ("a1", "a2", "a3", "b1", "b2")}
    for _ in askers:
        hall.finish(running)
        hall.serve()
        running = askers[hall.order[-1]]
    assert hall.order == ["running", "a1", "b1", "a2", "b2", "a3"]


def test_when_too_many_wait_the_next_is_refused_and_told_when_to_come_back() -> None:
    hall = Hall("w0", limits=QueueLimits(max_requests=2))
    hall.ask()
    waiting = [hall.ask(), hall.ask()]
    error = hall.ask().error
    assert isinstance(error, Saturated)
    assert error.retry_after_s >= 1.0
    assert all(asker.waits for asker in waiting)


def test_when_too_many_of_a_tenant_wait_the_next_of_it_is_refused_and_no_other() -> None:
    hall = Hall("w0", limits=QueueLimits(max_tenant_requests=1))
    hall.ask()
    hall.ask(tenant="a")
    error = hall.ask(tenant="a").error
    assert isinstance(error, RateLimited)
    assert error.retry_after_s >= 1.0
    assert hall.ask(tenant="b").waits


def test_a_queue_without_places_refuses_at_once() -> None:
    hall = Hall("w0", limits=QueueLimits(max_requests=0))
    hall.ask()
    assert isinstance(hall.ask().error, Saturated)


def test_a_request_that_nobody_can_ever_serve_does_not_wait(hall: Hall) -> None:
    hall.ask()
    assert isinstance(hall.ask(model="other").error, ModelNotFound)
    hall.state.handle(Deregistered(WorkerId("w0"), Epoch(1)))
    assert isinstance(hall.ask().error, NoReadyWorker)


def test_who_withdraws_hears_nothing_and_leaves_nothing_booked(hall: Hall) -> None:
    first, second, third = hall.ask(), hall.ask(), hall.ask()
    second.withdraw()
    second.withdraw()
    assert hall.waiting == 1
    hall.finish(first)
    hall.serve()
    assert second.heard == []
    assert third.route
    assert hall.credit[0] == 1


def test_to_withdraw_after_the_answer_is_harmless(hall: Hall) -> None:
    first, second = hall.ask(), hall.ask()
    hall.finish(first)
    hall.serve()
    second.withdraw()
    assert (hall.waiting, hall.credit[0]) == (0, 1)
    assert len(second.heard) == 1


def test_who_is_withdrawn_by_another_s_answer_hears_nothing_and_leaves_nothing_booked() -> None:
    hall = Hall("w0", "w1")
    running = [hall.ask(), hall.ask()]
    first, second = hall.ask(), hall.ask()
    first.on_answer, second.on_answer = second.withdraw, first.withdraw
    for asker in running:
        hall.finish(asker)
    hall.serve()
    assert len(first.heard) + len(second.heard) == 1
    assert hall.credit[0] == 1
    assert hall.waiting == 0


def test_who_raises_on_hearing_takes_no_other_with_it_and_leaves_nothing_booked() -> None:
    hall = Hall("w0", "w1")
    running = [hall.ask(), hall.ask()]
    broken, other = hall.ask(), hall.ask()

    def fail() -> None:
        raise RuntimeError("no")

    broken.on_answer = fail
    for asker in running:
        hall.finish(asker)
    with structlog.testing.capture_logs() as logs:
        hall.serve()
    assert other.route
    assert hall.credit[0] == 1
    assert "answer_not_taken" in [entry["event"] for entry in logs]


def test_while_nobody_waits_there_is_nothing_to_wake_for(hall: Hall) -> None:
    first = hall.ask(timeout_s=5.0)
    assert hall.serve() is None
    second = hall.ask(timeout_s=5.0)
    assert hall.serve() is not None
    second.withdraw()
    assert hall.serve() is None
    assert first.route


def test_the_page_of_metrics_tells_who_waits_how_long_it_took_and_who_was_refused() -> None:
    hall = Hall("w0", limits=QueueLimits(max_requests=2, max_tenant_requests=1))
    first = hall.ask()
    second, _ = hall.ask(tenant="a"), hall.ask(tenant="b", timeout_s=1.0)
    hall.ask(tenant="a")
    hall.ask()
    page = generate_latest(hall.state.metrics.registry).decode()
    assert f'lb_scheduler_waiting_requests{{model="{MODEL}"}} 2.0' in page
    hall.elapse(2.0)
    hall.finish(first)
    hall.serve()
    assert second.route
    page = generate_latest(hall.state.metrics.registry).decode()
    assert f'lb_scheduler_waiting_requests{{model="{MODEL}"}} 0.0' in page
    assert "lb_scheduler_waited_seconds_count 2.0" in page
    assert "lb_scheduler_waited_seconds_sum 4.0" in page
    for reason, number in (("tenant_limit", 1), ("queue_full", 1), ("deadline", 1), ("saturated", 0)):
        assert f'lb_scheduler_refused_total{{reason="{reason}"}} {number}.0' in page


@pytest_asyncio.fixture()
async def tended(hall: Hall) -> AsyncIterator[Hall]:
    """With the task that serves who waits."""
    serving = asyncio.ensure_future(serve_waiting(hall.state.desk))
    yield hall
    assert not serving.done()
    serving.cancel()


async def test_the_task_that_serves_wakes_for_an_event(tended: Hall) -> None:
    first, second = tended.ask(), tended.ask()
    await settle()
    assert second.waits
    tended.finish(first)
    await settle()
    assert second.route


async def test_the_task_that_serves_wakes_for_a_deadline_though_another_was_first(tended: Hall) -> None:
    tended.ask()
    late, soon = tended.ask(timeout_s=9.0), tended.ask(timeout_s=4.0)
    await settle()
    sooner = tended.ask(timeout_s=2.0)
    for asker, other in ((sooner, soon), (soon, late)):
        await tended.clock.elapse(2.01)
        assert isinstance(asker.error, DeadlineExceeded)
        assert other.waits
    await tended.clock.elapse(5.01)
    assert isinstance(late.error, DeadlineExceeded)


async def test_the_task_that_serves_wakes_when_prefill_is_done() -> None:
    hall = Hall("w0", limits=QueueLimits(), capacity=ROOMY)
    serving = asyncio.ensure_future(serve_waiting(hall.state.desk))
    askers = [hall.ask(prompt_bytes=prompt_bytes) for prompt_bytes in (40_000, 400, 4_000) * 3]
    await settle()
    assert any(asker.waits for asker in askers)
    await hall.clock.elapse(20.0)
    assert all(asker.route for asker in askers)
    serving.cancel()


async def test_the_task_that_serves_sleeps_without_a_timer_while_nobody_waits(tended: Hall) -> None:
    tended.ask()
    await settle()
    assert tended.clock.sleeper_count == 0
    second = tended.ask(timeout_s=4.0)
    await settle()
    assert tended.clock.sleeper_count == 1
    second.withdraw()
    tended.report("w0")
    await tended.clock.elapse(4.01)
    assert tended.clock.sleeper_count == 0


class Waiters(RuleBasedStateMachine):
    """Requests that come, wait, are served, give up or are late, in any order, at workers that come and go."""

    def __init__(self) -> None:
        super().__init__()
        limits = QueueLimits(max_requests=5, max_tenant_requests=2)
        self.hall = Hall("w0", "w1", limits=limits, capacity=Capacity(2))
        self.askers: list[Asker] = []

    @rule(
        tenant=st.sampled_from(["", "a", "b"]),
        priority=st.integers(-1, 1),
        prompt_bytes=st.sampled_from([0, 400, 40_000]),
        timeout_s=st.none() | st.sampled_from([0.001, 1.0, 5.0]),
    )
    def ask(self, tenant: str, priority: int, prompt_bytes: int, timeout_s: float | None) -> None:
        asker = self.hall.ask(tenant=tenant, priority=priority, prompt_bytes=prompt_bytes, timeout_s=timeout_s)
        self.askers.append(asker)

    @precondition(lambda self: self.routed())
    @rule(data=st.data(), is_given_back=st.booleans())
    def end(self, data: st.DataObject, is_given_back: bool) -> None:
        asker = data.draw(st.sampled_from(self.routed()))
        if is_given_back:
            self.hall.release(asker)
        else:
            self.hall.finish(asker)

    @precondition(lambda self: self.askers)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.askers)).withdraw()

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def let_one_s_answer_withdraw_another(self, data: st.DataObject) -> None:
        one, other = (data.draw(st.sampled_from(self.waiting())) for _ in range(2))
        one.on_answer = other.withdraw

    @rule(seconds=st.sampled_from([0.001, 0.3, 1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.hall.elapse(seconds)

    @rule()
    def serve(self) -> None:
        wake = self.hall.serve()
        assert wake is None or wake > self.hall.clock.now()

    @rule(name=st.sampled_from(["w0", "w1"]), is_here=st.booleans())
    def come_or_go(self, name: str, is_here: bool) -> None:
        if is_here:
            self.hall.join(name, Capacity(2))
        else:
            self.hall.state.handle(Deregistered(WorkerId(name), Epoch(1)))

    @invariant()
    def everybody_hears_once_or_waits_or_has_withdrawn(self) -> None:
        for asker in self.askers:
            assert len(asker.heard) + asker.is_withdrawn <= 1
        assert self.hall.waiting == len(self.waiting())

    def routed(self) -> list[Asker]:
        return [asker for asker in self.askers if asker.heard and isinstance(asker.heard[0], Route)]

    def waiting(self) -> list[Asker]:
        return [asker for asker in self.askers if asker.waits]

    def teardown(self) -> None:
        for asker in self.waiting()[::2]:
            asker.withdraw()
        for name in ("w0", "w1"):
            self.hall.join(name, Capacity(2))
        for _ in range(2 * len(self.askers) + 1):
            for asker in self.routed():
                self.hall.finish(asker)
            self.hall.elapse(10.0)
            self.hall.serve()
        assert all(len(asker.heard) + asker.is_withdrawn == 1 for asker in self.askers)
        for asker in self.routed():
            self.hall.release(asker)
        assert self.hall.credit == (0, 0)
        assert self.hall.waiting == 0
        assert all(isinstance(answer, (Route, LoadBalancerError)) for one in self.askers for answer in one.heard)


TestWaiters = Waiters.TestCase
TestWaiters.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_queue_that_holds_nobody_back_lets_requests_wait_for_full_workers_alone() -> None:
    hall = Hall("w0", limits=AT_ONCE, capacity=Capacity(3))
    assert [hall.ask(prompt_bytes=1_000_000).waits for _ in range(4)] == [False, False, False, True]
