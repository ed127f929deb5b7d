"""Who goes at once, who waits, who is refused, and in which order those who wait are served."""

from __future__ import annotations

from random import Random

from lbcore.policies.assignments import Assignments
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import DrainNoticed, Registered, Reported
from lbcore.queue.room import Waiting
from lbcore.router import QueueLimits, Router
from lbcore.types import (
    Capacity,
    Epoch,
    LoadReport,
    RefusalReason,
    Refused,
    Route,
    RouteFacts,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)
from tests.fleet import MODEL, ROOMY, measured, spec

TOKENS_PER_MS = 10
"""Prefill of its workers."""


class Scene:
    """A router, its workers, and who has been served so far."""

    def __init__(
        self,
        workers: int = 1,
        *,
        policy: str = "cost",
        limits: QueueLimits | None = None,
        capacity: Capacity = ROOMY,
        is_measured: bool = True,
    ) -> None:
        pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
        for number in range(workers):
            pool.handle(Registered(spec(f"w{number}", capacity=capacity), number), 0.0)
            if is_measured:
                pool.handle(measured(f"w{number}"), 0.0)
        self.router: Router[str] = Router(
            pool, Assignments.of(build_policy(policy)), Random(1), limits or QueueLimits()
        )
        self.served: dict[str, Route | Refused] = {}
        self.sequence = 1

    def ask(
        self, name: str, now: float = 0.0, *, ms: int = 10, tenant: str = "", priority: int = 0, deadline: float = 1e9
    ) -> Route | Refused | Waiting[str]:
        facts = RouteFacts(name, MODEL, ms * TOKENS_PER_MS * 4, priority=priority, tenant=tenant)
        return self.router.ask(name, facts, now, deadline)

    def serve(self, now: float) -> list[str]:
        """Who is answered now."""
        answers = self.router.serve(now)
        self.served.update(answers)
        return [name for name, _ in answers]

    def until(self, end_s: float, now: float = 0.0) -> list[str]:
        """Who is answered until then, in order, when the router is woken whenever it wants to be."""
        order = self.serve(now)
        while (wake := self.router.next_wake(now)) is not None and wake <= end_s:
            now = max(now + 1e-6, wake)
            order += self.serve(now)
        return order

    def report(self, load: LoadReport, now: float, worker: int = 0) -> None:
        self.sequence += 1
        report = LoadReport(
            sequence=self.sequence,
            running_requests=load.running_requests,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
            queued_prompt_tokens=load.queued_prompt_tokens,
            ticket_updates=load.ticket_updates,
        )
        self.router.handle(Reported(WorkerId(f"w{worker}"), Epoch(1), report), now)


def test_a_request_goes_at_once_where_there_is_room() -> None:
    assert isinstance(Scene().ask("a"), Route)


def test_nobody_is_kept_back_from_a_worker_whose_speed_nobody_knows() -> None:
    scene = Scene(is_measured=False)
    assert all(isinstance(scene.ask(str(number), ms=95), Route) for number in range(20))
    scene.report(LoadReport(prefill_tokens_per_s=10_000, queued_prompt_tokens=20_000), 0.1)
    assert isinstance(scene.ask("next", 0.1, ms=95), Waiting)


def test_a_newcomer_is_believed_to_be_as_fast_as_those_who_are_there() -> None:
    scene = Scene()
    scene.router.handle(Registered(spec("w1"), 1), 0.0)
    answers = [scene.ask(str(number), ms=95) for number in range(4)]
    assert [type(answer) for answer in answers] == [Route, Route, Waiting, Waiting]


def test_one_whose_best_worker_is_busy_waits_until_it_is_nearly_free() -> None:
    scene = Scene()
    scene.ask("busy", ms=95)
    assert isinstance(scene.ask("long", ms=95), Waiting)
    assert scene.until(10.0) == ["long"]
    assert isinstance(scene.served["long"], Route)


def test_a_long_prompt_lets_those_of_the_same_moment_come_first() -> None:
    scene = Scene()
    assert isinstance(scene.ask("long", ms=2000), Waiting)
    assert isinstance(scene.ask("short", 0.001), Route)
    assert scene.serve(0.001) == []
    assert scene.until(1.0, 0.001) == ["long"]


def test_short_ones_go_first_and_then_those_that_waited_for_long() -> None:
    scene = Scene()
    scene.ask("busy", ms=95)
    for name, ms in (("c", 99), ("a", 50), ("b", 70)):
        assert isinstance(scene.ask(name, ms=ms), Waiting)
    assert scene.until(10.0) == ["a", "b", "c"]


def test_a_newcomer_does_not_take_the_place_of_one_that_is_more_urgent() -> None:
    scene = Scene()
    scene.ask("busy", ms=95)
    assert isinstance(scene.ask("urgent", ms=99, priority=1), Waiting)
    # There is room for one as short as this, and it would come again and again.
    assert isinstance(scene.ask("short", 0.1, ms=1), Waiting)
    assert isinstance(scene.ask("more urgent", 0.1, ms=1, priority=2), Route)
    assert scene.until(10.0, 0.1) == ["urgent", "short"]


def test_a_quiet_spell_does_not_look_like_a_fleet_that_stands_still() -> None:
    scene = Scene(8)
    scene.ask("first", ms=500)
    scene.until(1.0)
    for number in range(500):
        assert not isinstance(scene.ask(f"r{number}", 600.0, ms=200), Refused)


def test_who_may_not_wait_goes_at_once_where_there_is_room() -> None:
    scene = Scene(limits=QueueLimits(max_requests=0))
    assert isinstance(scene.ask("long", ms=2000), Route)
    refused = scene.ask("longer", ms=2000)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusalReason.QUEUE_FULL


def test_a_queue_that_would_take_too_long_is_refused_with_the_time_it_takes() -> None:
    scene = Scene(limits=QueueLimits(max_wait_s=5.0))
    answers = [scene.ask(str(number), ms=1000) for number in range(20)]
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert 10 < len(refused) < 18
    assert all(answer.reason is RefusalReason.QUEUE_FULL for answer in refused)
    assert all(5.0 < answer.retry_after_s < 8.0 for answer in refused)


def test_requests_without_a_tenant_take_turns_with_those_that_have_one() -> None:
    scene = Scene()
    scene.ask("busy", ms=95)
    for number in range(4):
        scene.ask(f"-{number}", ms=95)
        scene.ask(f"a{number}", ms=95, tenant="a")
    order = scene.until(10.0)
    assert sorted(order[:4])[0][0] != sorted(order[:4])[-1][0]
    assert [name[0] for name in order].count("a") == 4


def test_one_tenant_may_not_fill_the_queue() -> None:
    scene = Scene(limits=QueueLimits(max_tenant_requests=2))
    scene.ask("busy", ms=2000)
    scene.until(1.0)
    answers = [scene.ask(f"a{number}", 1.0, ms=50, tenant="a") for number in range(3)]
    assert isinstance(answers[1], Waiting)
    assert isinstance(answers[2], Refused)
    assert answers[2].reason is RefusalReason.TENANT_LIMIT
    assert isinstance(scene.ask("b", 1.0, ms=50, tenant="b"), Waiting)


def test_without_anybody_to_share_with_there_is_no_limit_for_those_without_a_tenant() -> None:
    scene = Scene(limits=QueueLimits(max_tenant_requests=2))
    scene.ask("busy", ms=2000)
    scene.until(1.0)
    assert all(isinstance(scene.ask(str(number), 1.0, ms=50), Waiting) for number in range(10))


def test_whose_time_is_over_hears_so() -> None:
    scene = Scene()
    scene.ask("busy", ms=2000)
    scene.until(1.0)
    scene.ask("late", 1.0, ms=50, deadline=1.5)
    assert scene.router.next_wake(1.0) == 1.5
    assert scene.serve(1.5) == ["late"]
    assert scene.served["late"] == Refused(RefusalReason.DEADLINE)


def test_who_has_gone_is_not_served() -> None:
    scene = Scene()
    scene.ask("busy", ms=2000)
    scene.until(1.0)
    waiting = scene.ask("gone", 1.0, ms=50)
    assert isinstance(waiting, Waiting)
    scene.router.withdraw(waiting)
    scene.router.withdraw(waiting)
    assert scene.router.waiting(MODEL) == 0
    assert scene.until(100.0, 1.0) == []


def test_a_policy_that_counts_no_held_work_sends_everything_at_once() -> None:
    scene = Scene(2, policy="round_robin")
    assert all(isinstance(scene.ask(str(number), ms=1000), Route) for number in range(50))


def test_those_for_whom_every_worker_is_full_wait_whatever_the_policy() -> None:
    scene = Scene(policy="least_requests", capacity=Capacity(max_sequences=1))
    first = scene.ask("a")
    assert isinstance(first, Route)
    assert isinstance(scene.ask("b"), Waiting)
    scene.report(LoadReport(ticket_updates=(TicketUpdate(first.ticket, TicketPhase.FINISHED, 10, 0, 1),)), 1.0)
    assert scene.serve(1.0) == ["b"]


def test_those_who_wait_hear_when_nobody_is_left_to_serve_them() -> None:
    scene = Scene(capacity=Capacity(max_sequences=1))
    scene.ask("a")
    assert isinstance(scene.ask("b"), Waiting)
    scene.router.handle(DrainNoticed(WorkerId("w0"), Epoch(1)), 0.0)
    assert scene.serve(0.0) == ["b"]
    assert scene.served["b"] == Refused(RefusalReason.NO_READY_WORKER)
