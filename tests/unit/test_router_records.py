"""What a router tells of its decisions: how they came about, to who asks, and all they were made of, to who records."""

from __future__ import annotations

from random import Random

import orjson
import pytest

from lbcore.decisions import Decided, Reader, Recorder, outcome, rerun
from lbcore.policies.assignments import Assignments
from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Registered, Released
from lbcore.prefix import block_hashes
from lbcore.queue.room import Waiting
from lbcore.router import QueueLimits, Router
from lbcore.types import Capacity, RefusalReason, Refused, Route, Routed, RouteFacts
from tests.fleet import MODEL, ROOMY, measured, spec

TIGHT = Capacity(max_sequences=2, max_queued_requests=1)


class Desk:
    """A router over a few workers, what it has recorded, and who waits."""

    def __init__(
        self,
        policy: str = "cost",
        *,
        workers: int = 3,
        records: bool = True,
        max_requests: int = 100,
        capacity: Capacity = ROOMY,
    ) -> None:
        pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
        for number in range(workers):
            pool.handle(Registered(spec(f"w{number}", capacity=capacity), number), 0.0)
            pool.handle(measured(f"w{number}"), 0.0)
        self.told: list[Decided] = []
        self.lines: list[bytes] = []
        self.recorder = Recorder()
        self.router: Router[str] = Router(
            pool,
            Assignments.of(build_policy(policy)),
            Random(3),
            QueueLimits(max_requests=max_requests),
            record=self.record if records else None,
        )

    def record(self, decided: Decided) -> None:
        self.told.append(decided)
        # At once, as a log does: what is held for others changes with the next look.
        self.lines.append(orjson.dumps(self.recorder.line(decided)))

    def ask(self, name: str, now: float, *, tokens: int = 200, explain: bool = False) -> Route | Refused | Waiting[str]:
        prompt = b"x" * 256 + name.encode() * tokens
        facts = RouteFacts(name, MODEL, len(prompt), block_hashes(prompt), session_id=name[:2], explain=explain)
        return self.router.ask(name, facts, now)


@pytest.mark.parametrize("policy", sorted(PRESETS))
def test_what_was_recorded_decides_the_same_again_waiting_requests_too(policy: str) -> None:
    desk, rng, now = Desk(policy, capacity=TIGHT), Random(5), 0.0
    routes: list[Route] = []
    for number in range(80):
        now += rng.random() * 0.02
        outcome_ = desk.ask(f"r{number}", now, tokens=rng.randrange(1, 400))
        if isinstance(outcome_, Route):
            routes.append(outcome_)
        if routes and rng.random() < 0.7:
            desk.router.handle(Released((routes.pop(0).ticket,)), now)
        routes += [answer for _, answer in desk.router.serve(now) if isinstance(answer, Route)]
    reader = Reader()
    assert len(desk.told) > 40
    assert any(made.waited_ms for made in desk.told)
    for made, text in zip(desk.told, desk.lines, strict=True):
        told = reader.read(orjson.loads(text))
        assert told is not None
        assert outcome(rerun(told)) == outcome(made.decision) == told.outcome


def test_each_answer_is_recorded_once_and_nothing_while_a_request_waits() -> None:
    desk = Desk(workers=1)
    for number in range(4):
        desk.ask(f"r{number}", 0.0, tokens=1500)
    assert [made.request_id for made in desk.told] == ["r0"]
    now = 0.0
    while (wake := desk.router.next_wake(now)) is not None and len(desk.told) < 3:
        now = max(now + 1e-6, wake)
        desk.router.serve(now)
    assert len({made.request_id for made in desk.told}) == len(desk.told) == 3
    assert desk.told[1].waited_ms > 0


def test_refusals_are_recorded_with_the_pick_that_was_not_to_be() -> None:
    desk = Desk(workers=1, max_requests=0)
    long = desk.ask("long", 0.0, tokens=5000)
    refused = desk.ask("late", 0.0)
    assert isinstance(long, Route)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusalReason.QUEUE_FULL
    assert [made.refused for made in desk.told] == [None, RefusalReason.QUEUE_FULL]
    assert isinstance(desk.told[1].decision, Routed)
    nobody = desk.router.ask("x", RouteFacts("x", "gone"), 0.0)
    assert nobody == desk.told[2].decision == Refused(RefusalReason.MODEL_NOT_FOUND)


def test_who_does_not_record_decides_by_the_same_chance_as_ever() -> None:
    # Two that do not record agree with each other, whatever a third that does draws.
    names = [f"r{number}" for number in range(5)]
    first, second, third = (Desk("random", records=records) for records in (False, False, True))
    picks = [
        [route.target.worker_id for name in names if isinstance(route := desk.ask(name, 0.0), Route)]
        for desk in (first, second, third)
    ]
    assert picks[0] == picks[1]
    assert (len(first.told), len(third.told)) == (0, 5)


@pytest.mark.parametrize("records", [False, True])
def test_what_would_be_decided_is_what_is_decided_next(records: bool) -> None:
    desk = Desk("random", records=records)
    for number in range(6):
        facts = RouteFacts(f"r{number}", MODEL, 400)
        decision, explanation, waits = desk.router.explain(facts, 0.0)
        again, _, _ = desk.router.explain(facts, 0.0)
        assert outcome(decision) == outcome(again)
        route = desk.router.ask("r", facts, 0.0)
        assert isinstance(decision, Routed)
        assert isinstance(route, Route)
        assert (route.target.worker_id, waits) == (decision.endpoint.worker_id, False)
        assert explanation.reason == "drawn from 3, the cheaper the likelier"
    assert len(desk.told) == (6 if records else 0)


def test_a_route_is_explained_to_who_asks_also_after_it_has_waited() -> None:
    desk = Desk(workers=1)
    at_once, plain = desk.ask("r0", 0.0, tokens=1500, explain=True), desk.ask("r1", 0.0, tokens=1500)
    assert isinstance(at_once, Route)
    assert at_once.explanation is not None
    assert at_once.explanation.reason == "the only one that can take it"
    assert isinstance(plain, Waiting)
    assert isinstance(desk.ask("r2", 0.0, tokens=1500, explain=True), Waiting)
    now, served = 0.0, dict[str, Route | Refused]()
    while (wake := desk.router.next_wake(now)) is not None and len(served) < 2:
        now = max(now + 1e-6, wake)
        served |= dict(desk.router.serve(now))
    waited, unasked = served["r2"], served["r1"]
    assert isinstance(waited, Route)
    assert isinstance(unasked, Route)
    assert waited.explanation is not None
    assert waited.explanation.waited_ms > 0
    assert unasked.explanation is None
