"""Who decides and who waits for whom when models and phases have policies of their own, and when those change."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lbcore.policies.assignments import Assignments, build_assignments
from lbcore.pool import WorkerPool
from lbcore.pool_events import Deregistered, DrainNoticed, Registered, Released, Reported
from lbcore.queue.room import Waiting
from lbcore.router import LOOKS, QueueLimits, Router
from lbcore.types import (
    TAKERS,
    Capacity,
    Epoch,
    LoadReport,
    PolicyAssignment,
    RefusalReason,
    Refused,
    Role,
    Route,
    RouteFacts,
    Ticket,
    WorkerId,
)
from tests.fleet import MODEL, ROOMY, measured, spec

TOKENS_PER_MS = 10
"""Prefill of its workers."""
OTHER = "other"
EPOCH = Epoch(1)


class Scene:
    """A router that hears of policies, workers by role, and who has been served so far."""

    def __init__(
        self,
        *roles: Role,
        capacity: Capacity = ROOMY,
        assignments: Assignments | None = None,
        limits: QueueLimits | None = None,
    ) -> None:
        self.pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
        self.assignments = assignments or build_assignments("cost", "cost", "cost")
        self.router: Router[str] = Router(self.pool, self.assignments, Random(1), limits or QueueLimits())
        for number, role in enumerate(roles):
            joined = spec(f"w{number}", role=role, capacity=capacity, models=(MODEL, OTHER))
            self.router.handle(Registered(joined, number), 0.0)
            self.router.handle(measured(f"w{number}"), 0.0)

    def ask(
        self, name: str, phase: Role = Role.MIXED, now: float = 0.0, *, ms: int = 10, model: str = MODEL
    ) -> Route | Refused | Waiting[str]:
        return self.router.ask(name, RouteFacts(name, model, ms * TOKENS_PER_MS * 4, phase=phase), now)

    def worker_of(self, name: str, phase: Role = Role.MIXED, *, model: str = MODEL) -> str:
        """Where a request goes that does not have to wait."""
        route = self.ask(name, phase, model=model, ms=0)
        assert isinstance(route, Route)
        return route.target.worker_id

    def change(self, text: str, model: str = "", phase: Role = Role.MIXED) -> None:
        self.assignments.assign(PolicyAssignment(model, phase, text))

    def served(self, now: float) -> list[str]:
        """Who is answered without anything happening to the workers, however often the router has to be woken now."""
        names: list[str] = []
        while True:
            names += [name for name, _ in self.router.serve(now)]
            wake = self.router.next_wake(now)
            if wake is None or wake > now:
                return names


def test_each_model_is_decided_by_its_own_policy() -> None:
    scene = Scene(Role.MIXED, Role.MIXED, assignments=build_assignments("least_requests", "cost", "cost"))
    scene.change("round_robin", OTHER)
    scene.router.handle(Reported(WorkerId("w0"), EPOCH, LoadReport(2, running_requests=50)), 0.0)
    assert [scene.worker_of(str(number)) for number in range(4)] == ["w1"] * 4
    assert [scene.worker_of(str(number), model=OTHER) for number in range(4)] == ["w0", "w1"] * 2


def test_each_phase_is_decided_by_its_own_policy() -> None:
    scene = Scene(Role.MIXED, Role.MIXED, assignments=build_assignments("cost", "round_robin", "least_requests"))
    scene.router.handle(Reported(WorkerId("w0"), EPOCH, LoadReport(2, running_requests=50)), 0.0)
    assert [scene.worker_of(str(number), Role.DECODE) for number in range(4)] == ["w1"] * 4
    assert {scene.worker_of(str(number), Role.PREFILL) for number in range(2)} == {"w0", "w1"}


@pytest.mark.parametrize("phase", Role)
def test_a_phase_goes_to_those_who_take_it(phase: Role) -> None:
    roles = (Role.MIXED, Role.PREFILL, Role.DECODE)
    scene = Scene(*roles, assignments=build_assignments("round_robin", "round_robin", "round_robin"))
    found = {scene.worker_of(str(number), phase) for number in range(6)}
    assert found == {f"w{number}" for number, role in enumerate(roles) if role in TAKERS[phase]}


def test_who_serves_the_model_but_not_the_phase_is_somebody() -> None:
    scene = Scene(Role.PREFILL)
    assert scene.ask("whole") == scene.ask("decode", Role.DECODE) == Refused(RefusalReason.NO_READY_WORKER)
    assert scene.ask("unknown", model="nobody's") == Refused(RefusalReason.MODEL_NOT_FOUND)


def test_one_phase_does_not_wait_behind_another() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE)
    scene.ask("busy", Role.PREFILL, ms=95)
    assert isinstance(scene.ask("prompt", Role.PREFILL, ms=99), Waiting)
    assert isinstance(scene.ask("answer", Role.DECODE, ms=99), Route)
    assert scene.router.waiting(MODEL) == 1


def test_those_who_wait_for_a_model_are_counted_over_its_phases() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE, capacity=Capacity(max_sequences=1))
    for phase in (Role.PREFILL, Role.DECODE):
        scene.ask(f"first {phase}", phase)
        assert isinstance(scene.ask(f"second {phase}", phase), Waiting)
    assert scene.router.waiting(MODEL) == 2


def test_requests_that_wait_elsewhere_do_not_count_for_a_phase() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE, Role.MIXED)
    for number, queued in enumerate((8, 4, 1)):
        load = LoadReport(2, queued_requests=queued)
        scene.router.handle(Reported(WorkerId(f"w{number}"), EPOCH, load), 0.0)
    waiting = {phase: scene.pool.snapshot(MODEL, 0.0, phase).waiting_requests for phase in Role}
    assert waiting == {Role.MIXED: 1, Role.PREFILL: 9, Role.DECODE: 5}


def test_who_waits_for_a_phase_that_nobody_takes_any_more_hears_so() -> None:
    scene = Scene(Role.MIXED, Role.PREFILL, capacity=Capacity(max_sequences=1))
    scene.ask("whole")
    scene.ask("prompt", Role.PREFILL)
    assert isinstance(scene.ask("waits"), Waiting)
    # The other worker is there and full, and no help to who wants the whole of a request.
    scene.router.handle(DrainNoticed(WorkerId("w0"), EPOCH), 0.0)
    assert scene.router.serve(0.0) == [("waits", Refused(RefusalReason.NO_READY_WORKER))]


def test_those_who_wait_go_at_once_with_a_policy_that_does_not_wait() -> None:
    scene = Scene(Role.MIXED)
    scene.ask("busy", ms=95)
    names = [str(number) for number in range(3 * LOOKS + 1)]
    assert all(isinstance(scene.ask(name, ms=95), Waiting) for name in names)
    assert scene.served(0.0) == []
    scene.change("least_requests")
    assert sorted(scene.served(0.0), key=int) == names
    assert scene.router.next_wake(0.0) is None


def test_a_long_prompt_that_lets_others_come_first_goes_at_once_too() -> None:
    scene = Scene(Role.MIXED)
    assert isinstance(scene.ask("long", ms=2000), Waiting)
    scene.change("round_robin", MODEL)
    assert scene.served(0.0) == ["long"]


def test_a_policy_of_another_model_or_phase_moves_nobody() -> None:
    scene = Scene(Role.MIXED)
    scene.ask("busy", ms=95)
    assert isinstance(scene.ask("waits", ms=95), Waiting)
    scene.change("least_requests", OTHER)
    scene.change("least_requests", MODEL, Role.PREFILL)
    assert scene.served(0.0) == []


def test_who_finds_all_workers_full_waits_by_the_policy_that_is_in_force_when_there_is_room() -> None:
    assignments = build_assignments("least_requests", "cost", "cost")
    scene = Scene(Role.MIXED, capacity=Capacity(max_sequences=1), assignments=assignments)
    first = scene.ask("first", ms=95)
    assert isinstance(first, Route)
    assert isinstance(scene.ask("second", ms=95), Waiting)
    scene.change("cost")
    scene.router.handle(Released((first.ticket,)), 0.0)
    assert scene.served(0.0) == ["second"]


def test_when_nobody_is_left_all_hear_so_however_many_they_are() -> None:
    scene = Scene(Role.MIXED, capacity=Capacity(max_sequences=1))
    scene.ask("busy")
    names = [str(number) for number in range(2 * LOOKS + 1)]
    assert all(isinstance(scene.ask(name), Waiting) for name in names)
    scene.router.handle(Deregistered(WorkerId("w0"), EPOCH), 0.0)
    assert sorted(scene.served(0.0), key=int) == names


class Changes(RuleBasedStateMachine):
    """Requests, policies, workers and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        limits = QueueLimits(max_requests=40, max_tenant_requests=20)
        roles = (Role.MIXED, Role.PREFILL, Role.DECODE)
        self.scene = Scene(*roles, capacity=Capacity(max_sequences=2), limits=limits)
        self.router = self.scene.router
        self.now = 0.0
        self.facts: dict[str, RouteFacts] = {}
        self.answers: dict[str, Route | Refused] = {}
        self.waiting: dict[str, Waiting[str]] = {}
        self.tickets: set[Ticket] = set()

    def answered(self, name: str, answer: Route | Refused) -> None:
        assert name not in self.answers
        self.answers[name] = answer
        if isinstance(answer, Route):
            assert answer.ticket not in self.tickets
            self.tickets.add(answer.ticket)
            number = int(answer.target.worker_id.removeprefix("w"))
            assert list(Role)[number] in TAKERS[self.facts[name].phase]

    @rule(
        count=st.integers(1, 40),
        model=st.sampled_from([MODEL, OTHER]),
        phase=st.sampled_from(Role),
        ms=st.sampled_from([0, 1, 50, 500]),
        tenant=st.sampled_from(["", "a"]),
        priority=st.sampled_from([0, 0, 1]),
        patience_s=st.sampled_from([0.05, 1e9]),
    )
    def ask(self, count: int, model: str, phase: Role, ms: int, tenant: str, priority: int, patience_s: float) -> None:
        for _ in range(count):
            name = str(len(self.facts))
            facts = RouteFacts(name, model, ms * TOKENS_PER_MS * 4, phase=phase, tenant=tenant, priority=priority)
            self.facts[name] = facts
            answer = self.router.ask(name, facts, self.now, self.now + patience_s)
            if isinstance(answer, Waiting):
                self.waiting[name] = answer
            else:
                self.answered(name, answer)

    @rule(
        model=st.sampled_from(["", MODEL, OTHER]),
        phase=st.sampled_from(Role),
        text=st.sampled_from(["cost", "least_tokens", "round_robin", "gie(kv=0)"]),
    )
    def change(self, model: str, phase: Role, text: str) -> None:
        self.scene.change(text, model, phase)

    @rule(model=st.sampled_from([MODEL, OTHER]), phase=st.sampled_from(Role))
    def take_away(self, model: str, phase: Role) -> None:
        self.scene.change("", model, phase)

    @rule()
    def serve(self) -> None:
        for name, answer in self.router.serve(self.now):
            del self.waiting[name]
            self.answered(name, answer)

    @rule(share=st.integers(1, 4))
    def finish(self, share: int) -> None:
        done = sorted(self.tickets)[::share]
        self.tickets -= {*done}
        self.router.handle(Released(tuple(done)), self.now)

    @rule()
    def withdraw(self) -> None:
        if self.waiting:
            name = next(iter(self.waiting))
            self.router.withdraw(self.waiting.pop(name))
            self.answers[name] = Refused(RefusalReason.DEADLINE)

    @rule(seconds=st.sampled_from([0.001, 0.1, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def everybody_waits_or_has_an_answer(self) -> None:
        assert self.answers.keys() | self.waiting.keys() == self.facts.keys()
        assert self.answers.keys().isdisjoint(self.waiting)
        counted = sum(self.router.waiting(model) for model in (MODEL, OTHER))
        assert counted == len(self.waiting)

    def teardown(self) -> None:
        # Time passes and requests end, until nobody waits: each look leaves fewer, or says when the next one is due.
        for _ in range(10 * len(self.facts) + 1):
            self.serve()
            if not self.waiting:
                break
            if self.tickets:
                self.finish(1)
                continue
            wake = self.router.next_wake(self.now)
            assert wake is not None
            self.now = max(self.now + 1e-6, wake)
        self.everybody_waits_or_has_an_answer()
        assert not self.waiting


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
