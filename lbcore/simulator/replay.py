"""A workload against a fleet in virtual time: events from a heap, decisions from the router of production."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from random import Random
from typing import Any

from lbcore.policies.assignments import Assignments
from lbcore.policies.base import Policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Deregistered, Disconnected, PrefixesReported, Registered, Reported, Ticked
from lbcore.queue.room import Waiting
from lbcore.router import QueueLimits, Router
from lbcore.simulator.worker import MODEL, EngineSpec, Flight, SimWorker
from lbcore.simulator.workload import Conversation, Workload
from lbcore.types import Epoch, LoadReport, PrefixReport, Refused, Route, RouteFacts, WorkerId

LEASE_TTL_S = 3.0
_FOREVER_S = 1e12
TICKET_TTL_S = 10.0
ENDLESS = QueueLimits(max_requests=10**9, max_prompt_bytes=10**18, max_tenant_requests=10**9, max_wait_s=1e9)
"""Nobody is refused: every policy has to serve the same requests."""

TOO_LONG = "too_long"
"""Why an engine refuses a call that its KV cache could never hold."""

BYTES_PER_TOKEN = 4
"""What a prompt is taken to have: the pool learns it as it would."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something happens to a worker."""

    at_s: float
    worker: int
    kind: str
    """`slow` (`factor` times from now on; 1 is as before), `die`, or `start` (cold)."""
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """Who serves, and how the scheduler hears of it."""

    workers: int = 8
    engine: EngineSpec = EngineSpec()
    speeds: Sequence[float] = ()
    """Relative speed of each worker; all 1 when empty."""
    report_interval_s: float = 0.1
    """Between two reports of a worker; 0 reports with every step and every request."""
    report_delay_s: float = 0.0
    """From a report's making to its arrival."""
    prefix_events: bool = False
    """Whether workers tell with their load reports what their prefix caches hold."""
    network_s: float = 0.0005
    """One way, for requests and for answers."""
    incidents: Sequence[Incident] = ()


@dataclass(slots=True)
class Played:
    """What came of a replay."""

    flights: list[Flight]
    duration_s: float
    workers: list[SimWorker]
    dead: list[SimWorker] = field(default_factory=list)


class Replay:
    """One workload, one fleet, one policy; deterministic by seed."""

    def __init__(
        self,
        workload: Workload,
        fleet: FleetSpec,
        policy: Policy,
        seed: int = 1,
        limits: QueueLimits = ENDLESS,
        puts_off: bool = True,
    ) -> None:
        """`puts_off` leaves steps and reports of which there is nothing to tell until somebody looks: a replay that
        does not comes to the same in up to twenty times the time."""
        self._workload = workload
        self._fleet = fleet
        self._rng = Random(seed)
        self._pool = WorkerPool(lease_ttl_s=_FOREVER_S, ticket_ttl_s=TICKET_TTL_S)
        self._router: Router[Flight] = Router(self._pool, Assignments.of(policy), Random(seed + 1), limits)
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = count()
        self._now = 0.0
        self._workers: list[SimWorker | None] = []
        self._by_name: dict[str, SimWorker] = {}
        self._dead: list[SimWorker] = []
        self._flights: list[Flight] = []
        self._talks: dict[int, tuple[Conversation, int]] = {}
        self._next_conversation = 0
        self._open = 0
        """Conversations that are not over."""
        self._wake_at = inf
        self._waiting = 0
        """Calls that wait in the router."""
        self._coasts = puts_off and fleet.report_interval_s > 0
        """Whether steps may be taken when somebody looks: not where each is reported."""
        self._puts_off = self._coasts and not fleet.report_delay_s
        """Whether nobody can tell when a report was sent that tells of nothing new."""

    def run(self, until_s: float = inf) -> Played:
        """Until every call has its answer, or until it is so late."""
        fleet, workload = self._fleet, self._workload
        for index in range(fleet.workers):
            self._workers.append(None)
            self._start_worker(index)
        for incident in fleet.incidents:
            self._at(incident.at_s, self._happen, incident)
        self._open = len(workload.conversations)
        if workload.users:
            for _ in range(min(workload.users, len(workload.conversations))):
                self._take_up(None)
        else:
            for conversation in workload.conversations:
                self._at(conversation.at_s + conversation.calls[0].think_s, self._ask_next, (conversation, 0))
        self._at(1.0, self._tick, None)
        events = self._events
        while self._goes_on() and events[0][0] <= until_s:
            self._now, _, happen, what = heappop(events)
            happen(what)
        self._flights = [flight for flight in self._flights if flight.refused or flight.finished_at >= 0]
        alive = [worker for worker in self._workers if worker is not None]
        for worker in alive:
            worker.catch_up(self._now)
        return Played(self._flights, self._now, alive, self._dead)

    def _goes_on(self) -> bool:
        """A closed loop ends when half of its users have nothing left to do: then it is none any more."""
        if self._next_conversation < len(self._workload.conversations):
            return self._open > 0
        return self._open > min(self._workload.users, len(self._workload.conversations)) // 2

    def _at(self, when: float, happen: Callable[[Any], None], what: Any) -> None:
        heappush(self._events, (when, next(self._order), happen, what))

    # -- clients

    def _take_up(self, _: None) -> None:
        """A user of a closed loop begins the next conversation."""
        if self._next_conversation >= len(self._workload.conversations):
            return
        conversation = self._workload.conversations[self._next_conversation]
        self._next_conversation += 1
        self._at(self._now + conversation.calls[0].think_s, self._ask_next, (conversation, 0))

    def _ask_next(self, what: tuple[Conversation, int]) -> None:
        conversation, index = what
        flight = Flight(len(self._flights), conversation.calls[index], self._now)
        self._flights.append(flight)
        self._talks[flight.number] = what
        self._ask(flight)

    def _ask(self, flight: Flight) -> None:
        self._send_reports_put_off()
        call, block_tokens = flight.call, self._workload.block_tokens
        prompt_tokens = call.input_tokens
        facts = RouteFacts(
            str(flight.number),
            MODEL,
            prompt_tokens * BYTES_PER_TOKEN,
            tuple(call.blocks[: prompt_tokens // block_tokens]),
            block_tokens * BYTES_PER_TOKEN,
            priority=call.priority,
            tenant=call.tenant,
            session_id=self._talks[flight.number][0].name,
            tried=flight.tried,
        )
        outcome = self._router.ask(flight, facts, self._now)
        if isinstance(outcome, Waiting):
            self._waiting += 1
            self._at(self._now, self._look, None)
        else:
            self._answer(flight, outcome)
        self._set_alarm()

    def _answer(self, flight: Flight, outcome: Route | Refused) -> None:
        if isinstance(outcome, Refused):
            flight.refused = outcome.reason.value
            self._over(flight)
            return
        flight.ticket = outcome.ticket
        flight.worker = outcome.target.worker_id
        flight.sent_at = self._now
        self._at(self._now + self._fleet.network_s, self._arrive, flight)

    def _over(self, flight: Flight) -> None:
        """The conversation goes on behind this call."""
        conversation, index = self._talks.pop(flight.number)
        if index + 1 < len(conversation.calls):
            self._at(self._now + conversation.calls[index + 1].think_s, self._ask_next, (conversation, index + 1))
            return
        self._open -= 1
        if self._workload.users:
            self._take_up(None)

    # -- workers

    def _start_worker(self, index: int) -> None:
        engine = self._fleet.engine
        speeds = self._fleet.speeds
        epoch = next(self._order) + 1
        worker = SimWorker(f"w{index:03}", engine, self._workload.block_tokens, epoch, self._fleet.prefix_events)
        worker.coasts = self._coasts
        if speeds:
            worker.batch.step_time = engine.step_time.slowed(1 / speeds[index])
        self._workers[index] = worker
        self._by_name[worker.name] = worker
        self._router.handle(Registered(worker.spec, epoch), self._now)
        # Each at its own phase, as processes that started at different times are.
        worker.reports = True
        self._at(self._now + self._rng.random() * self._fleet.report_interval_s, self._report, worker)

    def _arrive(self, flight: Flight) -> None:
        worker = self._by_name.get(flight.worker)
        if worker is None:
            self._failed(flight)
            return
        worker.catch_up(self._now)
        if not worker.receive(flight):
            flight.refused = TOO_LONG
            self._over(flight)
        elif not worker.is_stepping:
            self._step(worker)
        elif worker.disturb():
            self._watch(worker)
        if not worker.reports:
            worker.reports = True
            pause_s = self._fleet.report_interval_s or 0.25
            self._at(
                worker.reported_at + pause_s * ceil((self._now - worker.reported_at) / pause_s), self._report, worker
            )
        if not self._fleet.report_interval_s:
            self._send_report(worker)

    def _step(self, worker: SimWorker) -> None:
        if worker.step(self._now):
            self._watch(worker)

    def _watch(self, worker: SimWorker) -> None:
        """Looks again when there may be something to tell of its steps, and then only."""
        worker.watch = next(self._order)
        self._at(worker.quiet_until, self._end_step, (worker, worker.watch))

    def _end_step(self, what: tuple[SimWorker, int]) -> None:
        worker, watch = what
        if worker.watch != watch or self._by_name.get(worker.name) is not worker:
            return
        worker.catch_up(self._now)
        if worker.ends_at > self._now:
            self._watch(worker)
            return
        # Quiet steps are added up one by one, and when to look was multiplied: that may be a rounding error later.
        self._now = worker.ends_at
        complete = worker.end_step(self._now)
        self._step(worker)
        if not self._fleet.report_interval_s:
            self._send_report(worker)
        for flight in complete:
            self._over(flight)

    def _report(self, worker: SimWorker) -> None:
        if self._by_name.get(worker.name) is not worker:
            return
        if not self._puts_off or self._waiting or not worker.put_off_report(self._now):
            self._send_report(worker)
        worker.reported_at = self._now
        # What does not change is not told again, and so does not cost the simulation anything.
        worker.reports = worker.is_stepping
        if worker.reports:
            self._at(self._now + (self._fleet.report_interval_s or 0.25), self._report, worker)

    def _send_reports_put_off(self) -> None:
        """Somebody is about to look."""
        put_off = [(worker.report_put_off(), worker) for worker in self._by_name.values()]
        due = [(*news, worker) for news, worker in put_off if news is not None]
        for at, report, worker in sorted(due, key=lambda one: one[0]):
            self._router.handle(Reported(WorkerId(worker.name), Epoch(worker.epoch), report), at)

    def _send_report(self, worker: SimWorker) -> None:
        if not worker.has_measured:
            self._send_reports_put_off()
        worker.reported_at = self._now
        news = worker, worker.report(self._now), worker.prefix_report() if worker.reports_prefixes else None
        if self._fleet.report_delay_s:
            self._at(self._now + self._fleet.report_delay_s, self._hear, news)
        else:
            self._hear(news)

    def _hear(self, what: tuple[SimWorker, LoadReport, PrefixReport | None]) -> None:
        worker, report, prefixes = what
        name, epoch = WorkerId(worker.name), Epoch(worker.epoch)
        # First, so that of what the report calls finished it is known by then whether it is held.
        if prefixes is not None:
            self._router.handle(PrefixesReported(name, epoch, prefixes), self._now)
        self._router.handle(Reported(name, epoch, report), self._now)
        if self._waiting:
            self._serve()

    def _tick(self, _: None) -> None:
        self._router.handle(Ticked(), self._now)
        self._serve()
        self._at(self._now + 1.0, self._tick, None)

    def _look(self, _: None) -> None:
        self._serve()

    def _serve(self) -> None:
        for flight, outcome in self._router.serve(self._now):
            self._waiting -= 1
            self._answer(flight, outcome)
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Looks again when the router wants to."""
        wake_at = self._router.next_wake(self._now)
        if wake_at is not None and (wake_at < self._wake_at or self._wake_at <= self._now):
            self._wake_at = max(wake_at, self._now + 0.001)
            self._at(self._wake_at, self._wake, self._wake_at)

    def _wake(self, at: float) -> None:
        if at == self._wake_at:
            self._wake_at = inf
            self._serve()

    # -- incidents

    def _happen(self, incident: Incident) -> None:
        self._send_reports_put_off()
        worker = self._workers[incident.worker]
        if worker is not None:
            worker.catch_up(self._now)
        if incident.kind == "slow" and worker is not None:
            worker.batch.step_time = self._fleet.engine.step_time.slowed(incident.factor)
            if worker.disturb():
                self._watch(worker)
        elif incident.kind == "die" and worker is not None:
            self._workers[incident.worker] = None
            del self._by_name[worker.name]
            self._dead.append(worker)
            self._router.handle(Disconnected(WorkerId(worker.name), Epoch(worker.epoch), worker.epoch), self._now)
            self._at(self._now + LEASE_TTL_S, self._forget, worker)
            for flight in list(worker.flights.values()):
                self._failed(flight)
        elif incident.kind == "start" and worker is None:
            self._start_worker(incident.worker)

    def _forget(self, worker: SimWorker) -> None:
        """Its lease is over; one that has started anew under its name is another."""
        self._router.handle(Deregistered(WorkerId(worker.name), Epoch(worker.epoch)), self._now)

    def _failed(self, flight: Flight) -> None:
        """The attempt broke: the client's gateway asks for another worker, which begins anew."""
        flight.tried = flight.tried | {WorkerId(flight.worker)}
        self._at(self._now + self._fleet.network_s, self._ask, flight)
