"""The scheduler's state under everything that peers can send: it answers or refuses, and its books stay right."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client import generate_latest

from lbcore.api.v1 import load_pb2, routing_pb2
from lbcore.errors import (
    LeaseLost,
    LoadBalancerError,
    ModelNotFound,
    NameTaken,
    NoReadyWorker,
    RateLimited,
    Saturated,
)
from lbcore.policies.assignments import Assignments
from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Deregistered, Disconnected, DrainNoticed, Registered, Released, Reported, Ticked
from lbcore.scheduler.desk import Place
from lbcore.scheduler.state import MAX_REPLACED, SchedulerState
from lbcore.types import Capacity, Epoch, Route, RouteFacts, Ticket, WorkerId
from lbcore.wire.convert import facts_from_proto, load_from_proto, timeout_from_proto
from tests.fakes import ManualClock
from tests.fleet import MODEL, spec

U32 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**32 - 1])
U64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1])
DOUBLES = st.floats() | st.sampled_from([0.0, 1.0, 1e-300, 1e300])
NAMES = st.sampled_from(["w0", "w1", "w2"])
EPOCHS = st.integers(1, 3)


def state_with(policy: str = "cost") -> SchedulerState:
    pool = WorkerPool(lease_ttl_s=3, ticket_ttl_s=10)
    return SchedulerState(pool, Assignments.of(build_policy(policy)), ManualClock(), Random(0), 12345)


class HostilePeers(RuleBasedStateMachine):
    """Workers and gateways that say anything a message can hold, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = state_with()
        self.clock = self.state.clock
        self.tickets: list[Ticket] = []
        self.places: list[Place] = []
        self.connection = 0

    @initialize(policy=st.sampled_from(sorted(PRESETS)))
    def choose(self, policy: str) -> None:
        self.state = state_with(policy)
        self.clock = self.state.clock

    @rule(name=NAMES, epoch=EPOCHS, sequences=st.integers(1, 2**32 - 1), queued=U32, blocks=U64, size=U32)
    def register(self, name: str, epoch: int, sequences: int, queued: int, blocks: int, size: int) -> None:
        self.connection += 1
        worker = spec(name, epoch=epoch, capacity=Capacity(sequences, queued, blocks, size))
        try:
            self.state.admit(worker)
        except NameTaken:
            return
        self.state.handle(Registered(worker, self.connection))

    @rule(name=NAMES, epoch=EPOCHS, data=st.data(), sequence=U64, counts=st.tuples(U32, U32, U64, U64, U64, U64))
    def report(
        self, name: str, epoch: int, data: st.DataObject, sequence: int, counts: tuple[int, int, int, int, int, int]
    ) -> None:
        known = st.sampled_from(self.tickets) if self.tickets else st.nothing()
        updates = st.builds(
            load_pb2.TicketUpdate,
            ticket=known | U64,
            phase=st.integers(0, 3),
            prompt_token_count=U32,
            cached_token_count=U32,
            output_token_count=U32,
        )
        message = load_pb2.LoadReport(
            sequence=sequence,
            queued_request_count=counts[0],
            running_request_count=counts[1],
            queued_prompt_token_count=counts[2],
            tokens_in_flight_count=counts[3],
            kv_used_block_count=counts[4],
            kv_cached_block_count=counts[5],
            prefill_tokens_per_s=data.draw(DOUBLES),
            queued_prompt_pair_count=data.draw(DOUBLES),
            attention_ratio=data.draw(DOUBLES),
            step_time_ms=data.draw(DOUBLES),
            ticket_updates=data.draw(st.lists(updates, max_size=4)),
        )
        self.state.handle(Reported(WorkerId(name), Epoch(epoch), load_from_proto(message)))

    @rule(
        size=U32,
        hashes=st.lists(U64 | st.integers(0, 5), max_size=6),
        block=U32,
        limit=U32,
        tried=st.lists(NAMES | st.just("nobody")),
        priority=st.integers(-(2**31), 2**31 - 1),
        tenant=st.sampled_from(["", "a", "b"]),
        timeout_ms=U32,
    )
    def route(
        self,
        size: int,
        hashes: list[int],
        block: int,
        limit: int,
        tried: list[str],
        priority: int,
        tenant: str,
        timeout_ms: int,
    ) -> None:
        message = routing_pb2.RouteRequest(
            model=MODEL,
            prompt_byte_count=size,
            prefix_hashes=hashes,
            prefix_block_byte_count=block,
            max_output_token_count=limit,
            tried_worker_ids=tried,
            priority=priority,
            tenant=tenant,
            timeout_ms=timeout_ms,
        )
        try:
            found = self.state.desk.ask(facts_from_proto(message), self.told, timeout_from_proto(message))
        except (ModelNotFound, NoReadyWorker, Saturated, RateLimited):
            return
        if isinstance(found, Place):
            self.places.append(found)
            return
        assert found.target.worker_id not in tried
        self.told(found)

    def told(self, answer: Route | LoadBalancerError) -> None:
        if isinstance(answer, Route):
            assert answer.ticket not in self.tickets
            self.tickets.append(answer.ticket)

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.places)).withdraw()

    @rule()
    def serve(self) -> None:
        self.state.desk.serve()

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        known = st.sampled_from(self.tickets) if self.tickets else st.nothing()
        tickets = data.draw(st.lists(known | U64.map(Ticket), max_size=4))
        self.state.handle(Released(tuple(tickets)))

    @rule(name=NAMES, epoch=EPOCHS, kind=st.sampled_from([DrainNoticed, Deregistered]))
    def leave(self, name: str, epoch: int, kind: type[DrainNoticed | Deregistered]) -> None:
        self.state.handle(kind(WorkerId(name), Epoch(epoch)))

    @rule(name=NAMES, epoch=EPOCHS, back=st.integers(0, 2))
    def disconnect(self, name: str, epoch: int, back: int) -> None:
        self.state.handle(Disconnected(WorkerId(name), Epoch(epoch), self.connection - back))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 2.9, 3.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(seconds)
        self.state.handle(Ticked())

    @invariant()
    def the_books_are_right(self) -> None:
        for endpoint in self.state.pool.endpoints():
            assert endpoint.credit_requests >= 0
            assert endpoint.credit_tokens >= 0
            assert endpoint.token_ms > 0
        assert b"lb_scheduler_workers" in generate_latest(self.state.metrics.registry)

    def teardown(self) -> None:
        self.pass_time(10.0)
        self.pass_time(10.0)
        for place in self.places:
            place.withdraw()
        assert self.state.desk.waiting(MODEL) == 0
        assert self.state.desk.serve() is None
        assert self.state.pool.endpoints() == ()
        assert self.state.pool.next_deadline() is None


TestHostilePeers = HostilePeers.TestCase
TestHostilePeers.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_tickets_of_two_schedulers_are_never_the_same() -> None:
    first, second = state_with(), state_with()
    second = SchedulerState(second.pool, Assignments.of(build_policy("cost")), second.clock, Random(0), 54321)
    tickets = set()
    for state in (first, second):
        state.handle(Registered(spec(), 1))
        for _ in range(100):
            route = state.desk.ask(RouteFacts("r", MODEL), lambda answer: None)
            assert isinstance(route, Route)
            tickets.add(route.ticket)
    assert len(tickets) == 200
    assert all(0 < ticket < 2**63 for ticket in tickets)


def test_the_stream_of_a_worker_that_is_lost_or_replaced_is_ended_with_the_reason() -> None:
    state = state_with()
    ends: list[LoadBalancerError] = []
    for name, epoch in (("w0", 1), ("w1", 1)):
        state.handle(Registered(spec(name, epoch=epoch), epoch))
        state.streams[name, epoch] = ends.append
    state.handle(Registered(spec("w0", epoch=2), 3))
    assert isinstance(state.clock, ManualClock)
    state.clock.advance(3)
    state.handle(Ticked())
    assert [type(error) for error in ends] == [NameTaken, LeaseLost]
    assert state.streams == {}


def test_a_replaced_process_is_remembered_and_its_successor_let_in() -> None:
    state = state_with()
    for epoch in (1, 2):
        state.admit(spec(epoch=epoch))
        state.handle(Registered(spec(epoch=epoch), epoch))
    state.admit(spec(epoch=2))
    state.admit(spec("w1", epoch=1))
    with pytest.raises(NameTaken):
        state.admit(spec(epoch=1))


def test_replaced_processes_are_not_remembered_without_bound() -> None:
    state = state_with()
    for epoch in range(1, MAX_REPLACED + 3):
        state.handle(Registered(spec(epoch=epoch), epoch))
    state.admit(spec(epoch=1))
    with pytest.raises(NameTaken):
        state.admit(spec(epoch=2))
