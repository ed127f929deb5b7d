"""Requests in, routes out: the pool, the policies, the queue and chance, put together. No clock, no connection.

A request goes to its best worker at once while that one has room for it. Otherwise it waits here, where it can still
change its mind, be overtaken by what is more urgent or shorter, and be called off for nothing ("late binding").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from math import inf
from random import Random
from typing import Generic, TypeVar

from lbcore.cost import own_ms
from lbcore.decisions import Decided
from lbcore.explain import explain
from lbcore.pick import pick
from lbcore.policies.assignments import Assignments
from lbcore.policies.base import Policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Dispatched, PoolEffect, PoolEvent
from lbcore.queue.binding import free_for, has_room, patience_s
from lbcore.queue.fairness import ServiceCounters
from lbcore.queue.room import AGEING, Waiting, WaitingRoom
from lbcore.types import (
    TAKERS,
    Decision,
    Endpoint,
    EndpointState,
    Explanation,
    PickRequest,
    RefusalReason,
    Refused,
    Role,
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
    """Requests that wait for one phase of one model."""
    max_prompt_bytes: int = 1 << 30
    """Bytes of their prompts."""
    max_tenant_requests: int = 1024
    """Requests of one tenant among them."""
    max_wait_s: float = 120.0
    """Longest wait that is promised to a newcomer; one that would likely be longer is refused at once."""


class Router(Generic[W]):
    """`W` is whoever asks, and is handed back with the answer.

    The assignments may change at any time: who waits is decided by the policy that is in force when there is room.
    """

    def __init__(
        self,
        pool: WorkerPool,
        assignments: Assignments,
        rng: Random,
        limits: QueueLimits = QueueLimits(),
        first_ticket: int = 1,
        record: Callable[[Decided], None] | None = None,
    ) -> None:
        """`record` hears of each decision in the moment in which it is made, with all that it was made of."""
        self._pool = pool
        self._assignments = assignments
        self._rng = rng
        self._limits = limits
        self._record = record
        # The seed of the chance of the last pick, where picks are recorded.
        self._chance = 0
        self._tickets = count(first_ticket)
        # By model and phase.
        self._rooms: dict[tuple[str, Role], WaitingRoom[W]] = {}
        # Those of which everybody that was looked at is on its way: behind them there may be more that can go.
        self._unfinished: set[tuple[str, Role]] = set()
        self._counters = ServiceCounters()

    def ask(self, asker: W, facts: RouteFacts, now: float, deadline: float = inf) -> Route | Refused | Waiting[W]:
        """The decision, or the place in the queue: then the decision will come out of `serve`."""
        key = (facts.model, facts.phase)
        policy = self._assignments[key]
        room = self._rooms.get(key)
        request = self._pool.pick_request(facts)
        snapshot = self._snapshot(key, room, now)
        decision = pick(request, snapshot, policy, self._rng if self._record is None else self._recorded_chance())
        if isinstance(decision, Routed):
            if not self._binds_late(policy):
                return self._dispatch(decision, request, snapshot, policy, facts, now, now)
            endpoint = decision.endpoint
            work_ms = own_ms(request, endpoint)
            ready_at = now + patience_s(work_ms)
            fits = has_room(endpoint, work_ms, now)
            if fits and ready_at <= now and self._goes_first(room, facts, work_ms, now):
                return self._dispatch(decision, request, snapshot, policy, facts, now, now)
            tokens = request.prompt_tokens - request.hit_tokens.get(endpoint.spec.worker_id, 0.0)
        elif decision.reason is RefusalReason.SATURATED:
            tokens, work_ms, ready_at, fits = float(request.prompt_tokens), 0.0, now, False
        else:
            if self._record is not None:
                self._tell(decision, request, snapshot, policy, facts, 0.0)
            return decision
        if room is None:
            room = self._rooms[key] = WaitingRoom(self._counters)
        refused = self._over_limit(room, facts, now)
        if refused is not None:
            # Who may not wait need not, where there is room.
            if fits and isinstance(decision, Routed):
                return self._dispatch(decision, request, snapshot, policy, facts, now, now)
            if self._record is not None:
                self._tell(decision, request, snapshot, policy, facts, 0.0, refused.reason)
            return refused
        waiting = Waiting(asker, facts, now, deadline, work_ms, max(0.0, tokens), ready_at)
        room.add(waiting)
        return waiting

    def explain(self, facts: RouteFacts, now: float) -> tuple[Decision, Explanation, bool]:
        """How a request with these facts would be decided `now`, and whether it would wait for room first.

        Nothing is booked, no pick is counted, no chance is used up: the next decision is the one it would have been.
        Letting shorter ones come first for a moment is not waiting for room.
        """
        key = (facts.model, facts.phase)
        policy = self._assignments[key]
        room = self._rooms.get(key)
        request = self._pool.pick_request(facts)
        snapshot = self._snapshot(key, room, now)
        rng = Random(0)
        rng.setstate(self._rng.getstate())
        if self._record is not None:
            rng = Random(rng.getrandbits(64))
        decision = pick(request, snapshot, policy, rng)
        waits = False
        if isinstance(decision, Routed) and self._binds_late(policy):
            work_ms = own_ms(request, decision.endpoint)
            fits = has_room(decision.endpoint, work_ms, now)
            waits = not (fits and self._goes_first(room, facts, work_ms, now))
        return decision, explain(request, snapshot, policy, decision, 0.0, waits), waits

    def withdraw(self, waiting: Waiting[W]) -> None:
        """Nobody wants the answer any more; nothing happens when it was given already."""
        room = self._rooms.get((waiting.facts.model, waiting.facts.phase))
        if room is not None and waiting in room:
            room.remove(waiting)

    def handle(self, event: PoolEvent, now: float) -> list[PoolEffect]:
        """See `WorkerPool.handle`. Who waits is served by `serve`."""
        return self._pool.handle(event, now)

    def serve(self, now: float) -> list[tuple[W, Route | Refused]]:
        """Decisions for those who wait, as far as there are any `now`."""
        served: list[tuple[W, Route | Refused]] = []
        self._unfinished.clear()
        for key, room in self._rooms.items():
            if len(room):
                served += [(one.asker, Refused(RefusalReason.DEADLINE)) for one in room.late(now)]
                self._serve(key, room, now, served)
        return served

    def next_wake(self, now: float) -> float | None:
        """When `serve` next has something to do without an event; None while nothing is to be expected."""
        wakes: list[float] = []
        for key, room in self._rooms.items():
            if not len(room):
                continue
            if key in self._unfinished:
                return now
            wakes += [at for at in (room.next_deadline(), room.next_ready(now)) if at is not None]
            least_ms = min([waiting.work_ms for waiting in islice(room.in_order(now), LOOKS)])
            wakes += [at for one in self._takers(key, now) if (at := free_for(one, least_ms)) > now]
        return min(wakes, default=None)

    def waiting(self, model: str) -> int:
        """How many requests wait for a model, whatever of it they ask for."""
        rooms = (self._rooms.get((model, phase)) for phase in Role)
        return sum(len(room) for room in rooms if room is not None)

    def _binds_late(self, policy: Policy) -> bool:
        return self._limits.late_binding and policy.binds_late

    def _snapshot(self, key: tuple[str, Role], room: WaitingRoom[W] | None, now: float) -> Snapshot:
        model, phase = key
        snapshot = self._pool.snapshot(model, now, phase)
        if room is None or not len(room):
            return snapshot
        return snapshot._replace(waiting_requests=snapshot.waiting_requests + len(room))

    def _dispatch(
        self,
        decision: Routed,
        request: PickRequest,
        snapshot: Snapshot,
        policy: Policy,
        facts: RouteFacts,
        now: float,
        since: float,
    ) -> Route:
        """Books what was decided `now` for a request that came at `since`."""
        if self._record is not None:
            self._tell(decision, request, snapshot, policy, facts, now - since)
        explanation = None
        if facts.explain:
            explanation = explain(request, snapshot, policy, decision, (now - since) * 1000)
        spec = decision.endpoint.spec
        ticket = Ticket(next(self._tickets))
        self._pool.handle(Dispatched(ticket, spec.worker_id, request, facts), now)
        uncached = request.prompt_tokens - request.hit_tokens.get(spec.worker_id, 0.0)
        self._counters.charge(facts.tenant, max(0.0, uncached))
        return Route(spec.target, ticket, _targets(decision.fallbacks), decision.predicted_ttft_ms, explanation)

    def _recorded_chance(self) -> Random:
        """Chance for one pick, which a record can repeat."""
        self._chance = self._rng.getrandbits(64)
        return Random(self._chance)

    def _tell(
        self,
        decision: Decision,
        request: PickRequest,
        snapshot: Snapshot,
        policy: Policy,
        facts: RouteFacts,
        waited_s: float,
        refused: RefusalReason | None = None,
    ) -> None:
        """Records the last pick."""
        assert self._record is not None
        waited_ms = waited_s * 1000
        self._record(Decided(facts.request_id, request, snapshot, policy, self._chance, decision, waited_ms, refused))

    def _serve(
        self, key: tuple[str, Role], room: WaitingRoom[W], now: float, served: list[tuple[W, Route | Refused]]
    ) -> None:
        """Looks at the first in order. Who cannot go yet is thought to go to the best worker later, and those behind
        see the work that they find in front of them there."""
        policy = self._assignments[key]
        binds_late = self._binds_late(policy)
        held_ms: dict[WorkerId, float] = {}
        snapshot: Snapshot | None = None
        looked_at = [*islice(room.in_order(now), LOOKS)]
        if binds_late:
            looked_at = [waiting for waiting in looked_at if waiting.ready_at <= now]
        least_ms = min([waiting.work_ms for waiting in looked_at], default=0.0)
        gone = 0
        for waiting in looked_at:
            if snapshot is None:
                snapshot = self._snapshot(key, room, now)
                if not self._anybody_fits(snapshot, key[1], least_ms if binds_late else None, now):
                    return
            request = _still(self._pool.pick_request(waiting.facts), now - waiting.since, held_ms)
            rng = self._rng if self._record is None else self._recorded_chance()
            decision = pick(request, snapshot, policy, rng)
            if isinstance(decision, Refused):
                if decision.reason is RefusalReason.SATURATED:
                    continue
                if self._record is not None:
                    self._tell(decision, request, snapshot, policy, waiting.facts, now - waiting.since)
                room.remove(waiting)
                gone += 1
                served.append((waiting.asker, decision))
                continue
            endpoint = decision.endpoint
            worker_id = endpoint.spec.worker_id
            work_ms, ahead_ms = own_ms(request, endpoint), held_ms.get(worker_id, 0.0)
            if not binds_late or has_room(endpoint, work_ms, now, ahead_ms):
                room.dispatched(waiting, now)
                gone += 1
                facts, since = waiting.facts, waiting.since
                route = self._dispatch(decision, request, snapshot, policy, facts, now, since)
                served.append((waiting.asker, route))
                snapshot = None
            else:
                held_ms[worker_id] = ahead_ms + work_ms
        if gone == LOOKS:
            self._unfinished.add(key)

    def _anybody_fits(self, snapshot: Snapshot, phase: Role, least_ms: float | None, now: float) -> bool:
        """Whether some worker might take something, the shortest of which has so much prefill (None: whatever it has);
        or there is nobody to ask, which those who wait must hear."""
        there = [one for one in _taking(snapshot, phase) if one.state in _PICKED]
        return not there or any(one.room > 0 and (least_ms is None or has_room(one, least_ms, now)) for one in there)

    def _takers(self, key: tuple[str, Role], now: float) -> Sequence[Endpoint]:
        model, phase = key
        return _taking(self._pool.snapshot(model, now), phase)

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
        expected_s = self._expected_s(room, (facts.model, facts.phase), now)
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

    def _expected_s(self, room: WaitingRoom[W], key: tuple[str, Role], now: float) -> float:
        """How long it takes until all who wait are on their way: by how fast they leave, as far as that is known, or
        else by the prefill that they and the workers have in front of them."""
        if not len(room):
            return 0.0
        drain_per_s = room.drain_per_s(now)
        if drain_per_s:
            return len(room) / drain_per_s
        endpoints = self._takers(key, now)
        queued_ms = room.work_ms + sum(one.wait_ms(now) for one in endpoints)
        return queued_ms / 1000 / max(1, len(endpoints))


def _taking(snapshot: Snapshot, phase: Role) -> Sequence[Endpoint]:
    """Those that take the phase, in whatever state."""
    if snapshot.agreement.all_mixed:
        return snapshot.endpoints
    takers = TAKERS[phase]
    return [endpoint for endpoint in snapshot.endpoints if endpoint.spec.role in takers]


def _still(request: PickRequest, waited_s: float, held_ms: Mapping[WorkerId, float]) -> PickRequest:
    """The request of somebody who has waited, with what comes before it. A first token that is late already can be
    asked for no more."""
    left_ms = request.ttft_slo_ms and max(0.0, request.ttft_slo_ms - waited_s * 1000)
    return request._replace(held_ms=held_ms, ttft_slo_ms=left_ms)


def _targets(endpoints: Iterable[Endpoint]) -> tuple[Target, ...]:
    return tuple([endpoint.spec.target for endpoint in endpoints])
