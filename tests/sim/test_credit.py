"""Credit through any sequence of events: never negative, never lost, never given back twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lbcore.pool import WorkerPool
from lbcore.pool_events import (
    CreditReleased,
    Deregistered,
    Disconnected,
    Dispatched,
    DrainNoticed,
    PoolEvent,
    Registered,
    Released,
    Reported,
    ReportRejected,
    Ticked,
    TicketsExpired,
    WorkerLost,
)
from lbcore.types import (
    EndpointState,
    Epoch,
    LoadReport,
    PickRequest,
    RouteFacts,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)
from tests.fleet import MODEL, spec

LEASE_S, TICKET_S = 1.0, 3.0
NAMES = ("w0", "w1", "w2")

names = st.sampled_from(NAMES)
phases = st.sampled_from(TicketPhase)


@dataclass
class ModelWorker:
    """A worker epoch as the plainest possible model remembers it."""

    epoch: int
    connection: int
    lease_until: float
    sequence: int = 0
    connected: bool = True
    draining: bool = False


@dataclass
class OpenTicket:
    """A dispatch that nobody has acknowledged."""

    name: str
    tokens: int
    expires_at: float


@dataclass
class Model:
    """What the pool must agree with after every event."""

    workers: dict[str, ModelWorker] = field(default_factory=dict)
    open: dict[int, OpenTicket] = field(default_factory=dict)

    def forget(self, name: str) -> None:
        self.workers.pop(name, None)
        self.open = {number: ticket for number, ticket in self.open.items() if ticket.name != name}


class CreditMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.pool = WorkerPool(lease_ttl_s=LEASE_S, ticket_ttl_s=TICKET_S)
        self.model = Model()
        self.now = 0.0
        self.epochs = 0
        self.connections = 0
        self.tickets = 0
        for name in NAMES:
            self.restart(name)

    def handle(self, event: PoolEvent) -> list[object]:
        return list(self.pool.handle(event, self.now))

    @rule(name=names)
    def restart(self, name: str) -> None:
        self.epochs += 1
        self.connections += 1
        self.model.forget(name)
        self.handle(Registered(spec(name, epoch=self.epochs), self.connections))
        self.model.workers[name] = ModelWorker(self.epochs, self.connections, self.now + LEASE_S)

    @rule(name=names)
    def come_back(self, name: str) -> None:
        worker = self.model.workers.get(name)
        if worker is not None:
            self.connections += 1
            self.handle(Registered(spec(name, epoch=worker.epoch), self.connections))
            worker.connection, worker.connected, worker.lease_until = self.connections, True, self.now + LEASE_S

    @rule(name=names, late=st.booleans())
    def disconnect(self, name: str, late: bool) -> None:
        worker = self.model.workers.get(name)
        if worker is not None:
            connection = worker.connection - late
            effects = self.handle(Disconnected(WorkerId(name), Epoch(worker.epoch), connection))
            assert bool(effects) == (worker.connected and not late)
            worker.connected = worker.connected and late

    @rule(name=names)
    def drain(self, name: str) -> None:
        worker = self.model.workers.get(name)
        if worker is not None:
            self.handle(DrainNoticed(WorkerId(name), Epoch(worker.epoch)))
            worker.draining = True

    @rule(name=names)
    def leave(self, name: str) -> None:
        worker = self.model.workers.get(name)
        if worker is not None:
            self.handle(Deregistered(WorkerId(name), Epoch(worker.epoch)))
            self.model.forget(name)

    @rule(name=names, prompt_tokens=st.integers(0, 500), hit_tokens=st.integers(0, 600), blocks=st.integers(0, 4))
    def dispatch(self, name: str, prompt_tokens: int, hit_tokens: int, blocks: int) -> None:
        self.tickets += 1
        request = PickRequest(MODEL, prompt_tokens, {WorkerId(name): hit_tokens})
        facts = RouteFacts("r", MODEL, prompt_tokens * 4, tuple(range(blocks)), 256)
        self.handle(Dispatched(Ticket(self.tickets), WorkerId(name), request, facts))
        if name in self.model.workers:
            tokens = max(0, prompt_tokens - hit_tokens)
            self.model.open[self.tickets] = OpenTicket(name, tokens, self.now + TICKET_S)

    @rule(
        name=names,
        step=st.integers(-2, 3),
        epochs_ago=st.sampled_from((0, 0, 0, 1)),
        updates=st.lists(st.tuples(st.integers(1, 12), phases, st.integers(0, 500)), max_size=6),
    )
    def report(self, name: str, step: int, epochs_ago: int, updates: list[tuple[int, TicketPhase, int]]) -> None:
        """In order, again, too late, or from a former life; of tickets of its own, of others, or of nobody."""
        worker = self.model.workers.get(name)
        epoch = worker.epoch - epochs_ago if worker else 0
        sequence = max(0, (worker.sequence if worker else 0) + step)
        news = tuple(
            TicketUpdate(Ticket(self.tickets + 1 - back), phase, tokens, tokens // 2, 1)
            for back, phase, tokens in updates
        )
        effects = self.handle(Reported(WorkerId(name), Epoch(epoch), LoadReport(sequence, ticket_updates=news)))
        if worker is None or epochs_ago:
            assert effects == [ReportRejected(WorkerId(name), Epoch(epoch))]
        elif sequence > worker.sequence:
            worker.sequence = sequence
            worker.lease_until = self.now + LEASE_S
            for update in news:
                if update.ticket in self.model.open and self.model.open[update.ticket].name == name:
                    del self.model.open[update.ticket]

    @rule(back=st.lists(st.integers(0, 10), max_size=4))
    def release(self, back: list[int]) -> None:
        tickets = [self.tickets - number for number in back]
        expected = {ticket for ticket in tickets if ticket in self.model.open}
        effects = self.handle(Released(tuple(Ticket(ticket) for ticket in tickets)))
        assert effects == [CreditReleased(len(expected))]
        for ticket in expected:
            del self.model.open[ticket]

    @rule(seconds=st.floats(0, 1.5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        lost = {name for name, worker in self.model.workers.items() if worker.lease_until <= self.now}
        for name in lost:
            self.model.forget(name)
        expired = [number for number, ticket in self.model.open.items() if ticket.expires_at <= self.now]
        for number in expired:
            del self.model.open[number]
        effects = self.handle(Ticked())
        assert {effect.spec.worker_id for effect in effects if isinstance(effect, WorkerLost)} == lost
        assert sum(effect.count for effect in effects if isinstance(effect, TicketsExpired)) == len(expired)
        deadline = self.pool.next_deadline()
        assert deadline is None or deadline > self.now

    @invariant()
    def credit_is_the_set_of_unacknowledged_tickets(self) -> None:
        endpoints = self.pool.endpoints()
        assert [endpoint.worker_id for endpoint in endpoints] == sorted(self.model.workers)
        assert self.pool.snapshot(MODEL, self.now).endpoints == endpoints
        for endpoint in endpoints:
            own = [ticket.tokens for ticket in self.model.open.values() if ticket.name == endpoint.worker_id]
            assert (endpoint.credit_requests, endpoint.credit_tokens) == (len(own), sum(own))

    @invariant()
    def a_worker_is_in_the_state_that_its_connection_and_drain_give_it(self) -> None:
        for endpoint in self.pool.endpoints():
            worker = self.model.workers[endpoint.worker_id]
            state = EndpointState.READY if worker.connected else EndpointState.SILENT
            assert endpoint.state is (EndpointState.DRAINING if worker.draining else state)

    @invariant()
    def the_next_deadline_is_the_first_lease_or_ticket_to_end(self) -> None:
        leases = [worker.lease_until for worker in self.model.workers.values()]
        tickets = [ticket.expires_at for ticket in self.model.open.values()]
        assert self.pool.next_deadline() == min(leases + tickets, default=None)

    def teardown(self) -> None:
        """When nothing is sent any more and workers stay, all credit comes back."""
        if not hasattr(self, "pool"):
            return
        self.now += TICKET_S
        for name, worker in self.model.workers.items():
            self.handle(Registered(spec(name, epoch=worker.epoch), self.connections))
        self.handle(Ticked())
        assert {endpoint.worker_id for endpoint in self.pool.endpoints()} == set(self.model.workers)
        assert all(endpoint.credit_requests == endpoint.credit_tokens == 0 for endpoint in self.pool.endpoints())


TestCredit = CreditMachine.TestCase
TestCredit.settings = settings(derandomize=True, max_examples=40, stateful_step_count=30, deadline=None, database=None)
