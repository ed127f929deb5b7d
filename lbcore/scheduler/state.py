"""What the scheduler knows and does, without the network: the router, its desk, and the effects of events on all.

Everything happens on one event loop, and nothing awaits between a look at the pool and the booking of what was picked
from it: that is why a thousand concurrent Routes cannot herd onto one worker.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import structlog

from lbcore.clock import Clock
from lbcore.decisions import Decided
from lbcore.errors import LeaseLost, LoadBalancerError, NameTaken
from lbcore.policies.assignments import Assignments
from lbcore.pool import WorkerPool
from lbcore.pool_events import (
    PoolEffect,
    PoolEvent,
    PrefixesMissed,
    Released,
    ReportRejected,
    TicketsExpired,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerReturned,
    WorkerSilent,
    WorkerUnready,
)
from lbcore.router import QueueLimits, Router
from lbcore.scheduler.desk import Desk, Place
from lbcore.scheduler.metrics import SchedulerMetrics
from lbcore.scheduler.table import Table
from lbcore.types import PolicyAssignment, Ticket, WorkerSpec

log = structlog.get_logger()

EndStream = Callable[[LoadBalancerError], None]
"""Ends a worker's Connect stream with an error."""

MAX_REPLACED = 1024
"""Replaced processes remembered; each is told once that its name is taken, and then ends."""

_LIMITS = QueueLimits()


class SchedulerState:
    """The one owner of the pool. `epoch` is the scheduler's own random number, told to workers with their lease.

    Routes are asked for at its `desk`.
    """

    def __init__(
        self,
        pool: WorkerPool,
        assignments: Assignments,
        clock: Clock,
        rng: Random,
        epoch: int,
        limits: QueueLimits = _LIMITS,
        record: Callable[[Decided], None] | None = None,
    ) -> None:
        """`record` hears of each decision, as `Router` has it."""
        self.epoch = epoch
        self.assignments = assignments
        self.pool = pool
        self.clock = clock
        self.table = Table(pool, clock)
        # The epoch in the high bits: tickets of an earlier scheduler mean nothing to this one.
        first_ticket = ((epoch & 0xFFFFFF) << 39) + 1
        self._router: Router[Place] = Router(pool, assignments, rng, limits, first_ticket, record)
        self.metrics = SchedulerMetrics(pool, clock, self._router.waiting)
        self.desk = Desk(self._router, clock, self.metrics, self._is_known, self._release)
        #: The open Connect stream of a worker, by name and epoch.
        self.streams: dict[tuple[str, int], EndStream] = {}
        #: Every model name that a worker ever served: without a worker it is out of service, not unknown.
        self._names_seen: set[str] = set()
        #: Workers by name and epoch that another process has replaced, oldest first.
        self._replaced: dict[tuple[str, int], None] = {}

    def admit(self, spec: WorkerSpec) -> None:
        """Whether a worker may register.

        Raises:
            NameTaken: another process replaced it while it was cut off; by coming back the two would throw each other
                out for ever.
        """
        if (spec.worker_id, spec.epoch) in self._replaced:
            raise _name_taken()

    def handle(self, event: PoolEvent) -> list[PoolEffect]:
        """Feeds an event to the pool and carries out what follows from it."""
        effects = self._router.handle(event, self.clock.now())
        for effect in effects:
            self._carry_out(effect)
        self.desk.happened()
        return effects

    def assign(self, assignment: PolicyAssignment) -> None:
        """Another policy decides from here on, for those who wait too; see `Assignments.assign`.

        Raises:
            ConfigError: there is no such policy, or a phase would be left without any.
        """
        policy = self.assignments.assign(assignment)
        log.info("policy_changed", model=assignment.model, phase=assignment.phase.value, policy=policy.name)
        self.desk.happened()

    def _carry_out(self, effect: PoolEffect) -> None:
        match effect:
            case WorkerJoined(spec):
                log.info(
                    "worker_joined",
                    worker_id=spec.worker_id,
                    address=spec.address,
                    engine=spec.engine,
                    models=list(spec.model_names),
                )
                self._names_seen.update(spec.model_names)
                self.table.changed(spec.worker_id)
            case WorkerReturned(spec):
                log.info("worker_returned", worker_id=spec.worker_id)
                self.table.changed(spec.worker_id)
            case WorkerSilent(spec):
                log.warning("worker_silent", worker_id=spec.worker_id)
                self.table.changed(spec.worker_id)
            case WorkerDraining(spec):
                log.info("worker_draining", worker_id=spec.worker_id)
                self.table.changed(spec.worker_id)
            case WorkerUnready(spec, unready):
                log.warning("worker_unready" if unready else "worker_ready", worker_id=spec.worker_id)
                self.table.changed(spec.worker_id)
            case WorkerLeft(spec):
                log.info("worker_left", worker_id=spec.worker_id)
                self.metrics.forget(spec.worker_id)
                self.table.changed(spec.worker_id)
            case WorkerLost(spec, why):
                log.warning("worker_lost", worker_id=spec.worker_id, reason=why)
                self.metrics.lost(why)
                self.metrics.forget(spec.worker_id)
                self._end_stream(spec, why)
                self.table.changed(spec.worker_id)
            case ReportRejected(worker_id):
                log.warning("report_rejected", worker_id=worker_id)
            case PrefixesMissed(spec):
                log.warning("prefixes_missed", worker_id=spec.worker_id)
            case TicketsExpired(number):
                log.warning("tickets_expired", count=number)
                self.metrics.expired(number)

    def _end_stream(self, spec: WorkerSpec, why: str) -> None:
        is_replaced = why == "replaced"
        if is_replaced:
            self._replaced[spec.worker_id, spec.epoch] = None
            if len(self._replaced) > MAX_REPLACED:
                del self._replaced[next(iter(self._replaced))]
        end = self.streams.pop((spec.worker_id, spec.epoch), None)
        if end is not None:
            end(_name_taken() if is_replaced else LeaseLost("The lease is over."))

    def _is_known(self, model: str) -> bool:
        # Of a scheduler that has just started nobody knows what there is not.
        return not self._names_seen or model in self._names_seen

    def _release(self, ticket: Ticket) -> None:
        self.handle(Released((ticket,)))


def _name_taken() -> NameTaken:
    return NameTaken("Another process registered under this name.")
