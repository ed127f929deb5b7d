"""Requests in, routes out: the pool, the policy, the queue and chance, put together. No clock, no connection.

A request goes to its best worker at once while that one has room for it. Otherwise it waits here, where it can still
change its mind, be overtaken by what is more urgent or shorter, and be called off for nothing ("late binding").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, islice
from math import inf
from random import Random
from typing import Generic, TypeVar

from lbcore.cost import own_ms
from lbcore.pick import pick
from lbcore.policies.base import Policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Dispatched, PoolEffect, PoolEvent
from lbcore.queue.binding import free_for, has_room, patience_s
from lbcore.queue.fairness import ServiceCounters
from lbcore.queue.room import AGEING, Waiting, WaitingRoom
from lbcore.types import (
    Endpoint,
    EndpointState,
    PickRequest,
    RefusalReason,
    Refused,
    Route,
    Routed,
    RouteFacts,
    Snapshot,
    Target,
    Ticket,
    WorkerId,
)

W = TypeVar("W")

_PICKED = (EndpointState.READY, EndpointState.SILENT)

LOOKS = 32
"""Of those who wait, so many are looked at whenever a worker has room: each look is a pick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Whether requests wait, and how many and how long at most."""

    late_binding: bool = True
    """False sends every request at once, to wait in its engine."""
    max_requests: int = 4096
    """Requests that wait for one model."""
    max_prompt_bytes: int = 1 << 30
    """Bytes of their prompts."""
    max_tenant_requests: int = 1024
    """Requests of one tenant among them."""
    max_wait_s: float = 120.0
    """Longest wait that is promised to a newcomer; one that would likely be longer is refused at once."""


class Router(Generic[W]):
    """`W` is whoever asks, and is handed back with the answer."""

    def __init__(
        self,
        pool: WorkerPool,
        policy: Policy,
        rng: Random,
        limits: QueueLimits = QueueLimits(),
        first_ticket: int = 1,
    ) -> None:
        self._pool = pool
        self._policy = policy
        self._rng = rng
        self._limits = limits
        self._binds_late = limits.late_binding and policy.binds_late
        self._tickets = count(first_ticket)
        self._rooms: dict[str, WaitingRoom[W]] = {}
        self._counters = ServiceCounters()

    def ask(self, asker: W, facts: RouteFacts, now: float, deadline: float = inf) -> Route | Refused | Waiting[W]:
        """The decision, or the place in the queue: then the decision will come out of `serve`."""
        room = self._rooms.get(facts.model)
        request = self._pool.pick_request(facts)
        snapshot = self._snapshot(facts.model, room, now)
        decision = pick(request, snapshot, self._policy, self._rng)
        if isinstance(decision, Routed):
            if not self._binds_late:
                return self._dispatch(decision, request, facts, now)
            endpoint = decision.endpoint
            work_ms = own_ms(request, endpoint)
            ready_at = now + patience_s(work_ms)
            fits = has_room(endpoint, work_ms, now)
            if fits and ready_at <= now and self._goes_first(room, facts, work_ms, now):
                return self._dispatch(decision, request, facts, now)
            tokens = request.prompt_tokens - request.hit_tokens.get(endpoint.spec.worker_id, 0.0)
        elif decision.reason is RefusalReason.SATURATED:
            tokens, work_ms, ready_at, fits = float(request.prompt_tokens), 0.0, now, False
        else:
            return decision
        if room is None:
            room = self._rooms[facts.model] = WaitingRoom(self._counters)
        refused = self._over_limit(room, facts, now)
        if refused is not None:
            # Who may not wait need not, where there is room.
            return self._dispatch(decision, request, facts, now) if fits and isinstance(decision, Routed) else refused
        waiting = Waiting(asker, facts, now, deadline, work_ms, max(0.0, tokens), ready_at)
        room.add(waiting)
        return waiting

    def withdraw(self, waiting: Waiting[W]) -> None:
        """Nobody wants the answer any more; nothing happens when it was given already."""
        room = self._rooms.get(waiting.facts.model)
        if room is not None and waiting in room:
            room.remove(waiting)

    def handle(self, event: PoolEvent, now: float) -> list[PoolEffect]:
        """See `WorkerPool.handle`. Who waits is served by `serve`."""
        return self._pool.handle(event, now)

    def serve(self, now: float) -> list[tuple[W, Route | Refused]]:
        """Decisions for those who wait, as far as there are any `now`."""
        served: list[tuple[W, Route | Refused]] = []
        for model, room in self._rooms.items():
            if len(room):
                served += [(one.asker, Refused(RefusalReason.DEADLINE)) for one in room.late(now)]
                self._serve(model, room, now, served)
        return served

    def next_wake(self, now: float) -> float | None:
        """When `serve` next has something to do without an event; None while nothing is to be expected."""
        wakes: list[float] = []
        for model, room in self._rooms.items():
            first = room.first(now)
            if first is None:
                continue
            wakes += [at for at in (room.next_deadline(), room.next_ready(now)) if at is not None]
            endpoints = self._pool.snapshot(model, now).endpoints
            wakes += [at for one in endpoints if (at := free_for(one, first.work_ms)) > now]
        return min(wakes, default=None)

    def waiting(self, model: str) -> int:
        """How many requests wait for a model."""
        room = self._rooms.get(model)
        return len(room) if room is not None else 0

    def _snapshot(self, model: str, room: WaitingRoom[W] | None, now: float) -> Snapshot:
        snapshot = self._pool.snapshot(model, now)
        if room is None or not len(room):
            return snapshot
        return snapshot._replace(waiting_requests=snapshot.waiting_requests + len(room))

    def _dispatch(self, decision: Routed, request: PickRequest, facts: RouteFacts, now: float) -> Route:
        spec = decision.endpoint.spec
        ticket = Ticket(next(self._tickets))
        self._pool.handle(Dispatched(ticket, spec.worker_id, request, facts), now)
        uncached = request.prompt_tokens - request.hit_tokens.get(spec.worker_id, 0.0)
        self._counters.charge(facts.tenant, max(0.0, uncached))
        return Route(spec.target, ticket, _targets(decision.fallbacks), decision.predicted_ttft_ms)

    def _serve(self, model: str, room: WaitingRoom[W], now: float, served: list[tuple[W, Route | Refused]]) -> None:
        """Looks at the first in order. Who cannot go yet is thought to go to the best worker later, and those behind
        see the work that they find in front of them there."""
        held_ms: dict[WorkerId, float] = {}
        snapshot: Snapshot | None = None
        for waiting in islice(room.in_order(now), LOOKS):
            if waiting.ready_at > now:
                continue
            if snapshot is None:
                snapshot = self._snapshot(model, room, now)
                if not self._anybody_fits(snapshot, now):
                    return
            request = self._pool.pick_request(waiting.facts)._replace(held_ms=held_ms)
            decision = pick(request, snapshot, self._policy, self._rng)
            if isinstance(decision, Refused):
                if decision.reason is RefusalReason.SATURATED:
                    continue
                room.remove(waiting)
                served.append((waiting.asker, decision))
                continue
            endpoint = decision.endpoint
            worker_id = endpoint.spec.worker_id
            work_ms, ahead_ms = own_ms(request, endpoint), held_ms.get(worker_id, 0.0)
            if self._fits(endpoint, work_ms, now, ahead_ms):
                room.dispatched(waiting, now)
                served.append((waiting.asker, self._dispatch(decision, request, waiting.facts, now)))
                snapshot = None
            else:
                held_ms[worker_id] = ahead_ms + work_ms

    def _anybody_fits(self, snapshot: Snapshot, now: float) -> bool:
        """Whether some worker might take something; or there is nobody to ask, which those who wait must hear."""
        there = [one for one in snapshot.endpoints if one.state in _PICKED]
        return not there or any(one.room > 0 and self._fits(one, 0.0, now, 0.0) for one in there)

    def _fits(self, endpoint: Endpoint, work_ms: float, now: float, ahead_ms: float) -> bool:
        return not self._binds_late or has_room(endpoint, work_ms, now, ahead_ms)

    def _goes_first(self, room: WaitingRoom[W] | None, facts: RouteFacts, work_ms: float, now: float) -> bool:
        """Whether a newcomer would be served before all who wait."""
        first = room.first(now) if room is not None else None
        if first is None or facts.priority > first.priority(now):
            return True
        if facts.priority < first.priority(now):
            return False
        if first.facts.priority < facts.priority:
            # It has risen to this priority, and comes behind those who are of it.
            return True
        if facts.tenant != first.facts.tenant:
            return self._counters.of(facts.tenant) < self._counters.of(first.facts.tenant)
        return work_ms + AGEING * 1000.0 * now < first.key

    def _over_limit(self, room: WaitingRoom[W], facts: RouteFacts, now: float) -> Refused | None:
        limits = self._limits
        expected_s = self._expected_s(room, facts.model, now)
        counts = facts.tenant or room.has_several_tenants
        if counts and room.of_tenant(facts.tenant) >= limits.max_tenant_requests:
            return Refused(RefusalReason.TENANT_LIMIT, expected_s)
        if (
            len(room) >= limits.max_requests
            or room.prompt_bytes + facts.prompt_bytes > limits.max_prompt_bytes
            or expected_s > limits.max_wait_s
        ):
            return Refused(RefusalReason.QUEUE_FULL, expected_s)
        return None

    def _expected_s(self, room: WaitingRoom[W], model: str, now: float) -> float:
        """How long it takes until all who wait are on their way: by how fast they leave, as far as that is known, or
        else by the prefill that they and the workers have in front of them."""
        if not len(room):
            return 0.0
        drain_per_s = room.drain_per_s(now)
        if drain_per_s:
            return len(room) / drain_per_s
        endpoints = self._pool.snapshot(model, now).endpoints
        queued_ms = room.work_ms + sum(one.wait_ms(now) for one in endpoints)
        return queued_ms / 1000 / max(1, len(endpoints))


def _targets(endpoints: Iterable[Endpoint]) -> tuple[Target, ...]:
    return tuple([endpoint.spec.target for endpoint in endpoints])
