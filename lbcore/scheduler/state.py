"""What the scheduler knows and does, without the network: the pool, the policy, and the effects of events on both.

Everything happens on one event loop, and nothing awaits between a look at the pool and the booking of what was picked
from it: that is why a thousand concurrent Routes cannot herd onto one worker.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random

import structlog

from lbcore.clock import Clock
from lbcore.errors import LeaseLost, LoadBalancerError, ModelNotFound, NameTaken, NoReadyWorker, Saturated
from lbcore.pick import pick
from lbcore.policies.base import Policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import (
    Dispatched,
    PoolEffect,
    PoolEvent,
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
from lbcore.scheduler.metrics import SchedulerMetrics
from lbcore.scheduler.table import Table
from lbcore.types import RefusalReason, Refused, Route, RouteFacts, Target, Ticket, WorkerId, WorkerSpec

log = structlog.get_logger()

EndStream = Callable[[LoadBalancerError], None]
"""Ends a worker's Connect stream with an error."""

MAX_REPLACED = 1024
"""Replaced processes remembered; each is told once that its name is taken, and then ends."""


class SchedulerState:
    """The one owner of the pool. `epoch` is the scheduler's own random number, told to workers with their lease."""

    def __init__(self, pool: WorkerPool, policy: Policy, clock: Clock, rng: Random, epoch: int) -> None:
        self.epoch = epoch
        self.pool = pool
        self.clock = clock
        self.table = Table(pool, clock)
        self.metrics = SchedulerMetrics(pool, clock)
        #: The open Connect stream of a worker, by name and epoch.
        self.streams: dict[tuple[str, int], EndStream] = {}
        #: Every model name that a worker ever served: without a worker it is out of service, not unknown.
        self._names_seen: set[str] = set()
        #: Workers by name and epoch that another process has replaced, oldest first.
        self._replaced: dict[tuple[str, int], None] = {}
        self._policy = policy
        self._rng = rng
        # Where each worker is, so that it is said once for an epoch and not with every route.
        self._targets: dict[WorkerId, Target] = {}
        # Bound once: the module's `log` looks its configuration up with every call, shown or not.
        self._log = structlog.get_logger().bind()
        # The epoch in the high bits: tickets of an earlier scheduler mean nothing to this one.
        self._tickets = count(((epoch & 0xFFFFFF) << 39) + 1)

    def route(self, facts: RouteFacts) -> Route:
        """Decides for one request and books it.

        Raises:
            ModelNotFound, NoReadyWorker, Saturated: nobody can take it.
        """
        now = self.clock.now()
        request = self.pool.pick_request(facts)
        decision = pick(request, self.pool.snapshot(facts.model, now), self._policy, self._rng)
        if isinstance(decision, Refused):
            self.metrics.refused(decision.reason)
            raise self._refusal(decision.reason, facts.model)
        endpoint, fallbacks, predicted_ttft_ms, _ = decision
        ticket = Ticket(next(self._tickets))
        worker_id = endpoint.spec.worker_id
        self.pool.handle(Dispatched(ticket, worker_id, request, facts), now)
        self.metrics.routed(worker_id)
        self._log.debug(
            "routed",
            request_id=facts.request_id,
            worker_id=worker_id,
            ticket=ticket,
            predicted_ttft_ms=predicted_ttft_ms,
        )
        targets = self._targets
        return Route(
            targets[worker_id],
            ticket,
            tuple([targets[other.spec.worker_id] for other in fallbacks]),
            predicted_ttft_ms,
        )

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
        effects = self.pool.handle(event, self.clock.now())
        for effect in effects:
            self._carry_out(effect)
        return effects

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
                self._targets[spec.worker_id] = Target(spec.worker_id, spec.epoch, spec.address)
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
                self._forget(spec.worker_id)
                self.table.changed(spec.worker_id)
            case WorkerLost(spec, why):
                log.warning("worker_lost", worker_id=spec.worker_id, reason=why)
                self.metrics.lost(why)
                self._forget(spec.worker_id)
                self._end_stream(spec, why)
                self.table.changed(spec.worker_id)
            case ReportRejected(worker_id):
                log.warning("report_rejected", worker_id=worker_id)
            case TicketsExpired(number):
                log.warning("tickets_expired", count=number)
                self.metrics.expired(number)

    def _forget(self, worker_id: WorkerId) -> None:
        del self._targets[worker_id]
        self.metrics.forget(worker_id)

    def _end_stream(self, spec: WorkerSpec, why: str) -> None:
        is_replaced = why == "replaced"
        if is_replaced:
            self._replaced[spec.worker_id, spec.epoch] = None
            if len(self._replaced) > MAX_REPLACED:
                del self._replaced[next(iter(self._replaced))]
        end = self.streams.pop((spec.worker_id, spec.epoch), None)
        if end is not None:
            end(_name_taken() if is_replaced else LeaseLost("The lease is over."))

    def _refusal(self, reason: RefusalReason, model: str) -> LoadBalancerError:
        match reason:
            # A scheduler that has just started, or a model whose last worker has gone: "later", but not "never".
            case RefusalReason.MODEL_NOT_FOUND if self._names_seen and model not in self._names_seen:
                return ModelNotFound(f"The model `{model}` does not exist or you do not have access to it.")
            case RefusalReason.MODEL_NOT_FOUND | RefusalReason.NO_READY_WORKER:
                return NoReadyWorker(f"No worker is ready to serve the model `{model}`.")
            case RefusalReason.SATURATED:
                return Saturated(f"All workers that serve the model `{model}` are full.")


def _name_taken() -> NameTaken:
    return NameTaken("Another process registered under this name.")
