"""Those who wait for one model, in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import takewhile
from math import inf
from typing import Generic, TypeVar

from lbcore.ewma import DecayingRate
from lbcore.queue.fairness import ServiceCounters
from lbcore.types import RouteFacts

W = TypeVar("W")

AGEING = 0.3
"""Milliseconds of work that each millisecond of waiting makes up for: a prompt of ten seconds goes before one of a
millisecond that came 33 seconds later."""

MIN_DEPARTURES = 32
"""Of which a rate can be told."""

BAND_AGE_S = 30.0
"""After so long a request counts as one of the next higher priority, behind those that are, and so on."""


class Waiting(Generic[W]):
    """One request that waits. Equal to itself only."""

    __slots__ = ("asker", "deadline", "facts", "key", "ready_at", "since", "tokens", "work_ms")

    def __init__(
        self, asker: W, facts: RouteFacts, since: float, deadline: float, work_ms: float, tokens: float, ready_at: float
    ) -> None:
        self.asker = asker
        self.facts = facts
        self.since = since
        self.deadline = deadline
        """When it is of no use any more; infinite for never."""
        self.work_ms = work_ms
        """Its prefill at its best worker, as of when it came."""
        self.tokens = tokens
        """Its uncached prompt tokens there."""
        self.ready_at = ready_at
        """Until then it lets others come first."""
        # Least work first, aged. As all age alike, the order of two never changes.
        self.key = work_ms + AGEING * 1000.0 * since

    def priority(self, now: float) -> int:
        """Its own, and what it has risen by waiting."""
        return self.facts.priority + max(0, int((now - self.since) / BAND_AGE_S))


class WaitingRoom(Generic[W]):
    """Strict priorities with ageing; inside one, tenants in turn by service; of a tenant, least work first, aged."""

    def __init__(self, counters: ServiceCounters) -> None:
        self._counters = counters
        # By priority, then by tenant; no list is empty.
        self._bands: dict[int, dict[str, list[Waiting[W]]]] = {}
        # Soonest first; those who have gone are still here until they come to the front.
        self._deadlines: list[tuple[float, int, Waiting[W]]] = []
        self._ready: list[tuple[float, int, Waiting[W]]] = []
        self._present: set[Waiting[W]] = set()
        # In the order in which they came.
        self._arrivals: deque[Waiting[W]] = deque()
        self._serial = 0
        self._prompt_bytes = 0
        self._work_ms = 0.0
        self._drained = DecayingRate(tau_s=10.0)
        self._departures = 0
        # Time in which somebody waited: without it a rate of leaving would tell of silence.
        self._waited_s = 0.0
        self._looked_at = 0.0

    def __len__(self) -> int:
        return len(self._present)

    def __contains__(self, one: Waiting[W]) -> bool:
        return one in self._present

    @property
    def prompt_bytes(self) -> int:
        """Bytes of the prompts that wait."""
        return self._prompt_bytes

    @property
    def work_ms(self) -> float:
        """Prefill of those who wait."""
        return self._work_ms

    @property
    def has_several_tenants(self) -> bool:
        """Whether more than one waits."""
        return len(self._bands) > 1 or any(len(tenants) > 1 for tenants in self._bands.values())

    def of_tenant(self, tenant: str) -> int:
        """How many of one tenant wait."""
        return sum(len(tenants.get(tenant, ())) for tenants in self._bands.values())

    def add(self, one: Waiting[W]) -> None:
        """It waits from here on."""
        self._look(one.since)
        tenants = self._bands.setdefault(one.facts.priority, {})
        waiting = tenants.get(one.facts.tenant)
        if waiting is None:
            self._counters.lift(one.facts.tenant)
            waiting = tenants[one.facts.tenant] = []
        insort(waiting, one, key=_key)
        self._present.add(one)
        self._arrivals.append(one)
        self._prompt_bytes += one.facts.prompt_bytes
        self._work_ms += one.work_ms
        self._serial += 1
        if one.deadline < inf:
            heappush(self._deadlines, (one.deadline, self._serial, one))
        if one.ready_at > one.since:
            heappush(self._ready, (one.ready_at, self._serial, one))

    def remove(self, one: Waiting[W]) -> None:
        """It does not wait any more; it must be here."""
        self._present.remove(one)
        tenants = self._bands[one.facts.priority]
        waiting = tenants[one.facts.tenant]
        index = bisect_left(waiting, one.key, key=_key)
        while waiting[index] is not one:
            index += 1
        del waiting[index]
        if not waiting:
            del tenants[one.facts.tenant]
            if not tenants:
                del self._bands[one.facts.priority]
        self._prompt_bytes -= one.facts.prompt_bytes
        # Sums of fractions do not come back to nothing by themselves.
        self._work_ms = self._work_ms - one.work_ms if self._present else 0.0
        if len(self._arrivals) > 2 * len(self._present) + 64:
            self._arrivals = deque(other for other in self._arrivals if other in self._present)
        if len(self._deadlines) > 2 * len(self._present) + 64:
            self._deadlines = [item for item in self._deadlines if item[2] in self._present]
            heapify(self._deadlines)

    def dispatched(self, one: Waiting[W], now: float) -> None:
        """It is on its way to a worker."""
        self._look(now)
        self.remove(one)
        self._drained.count(self._waited_s)
        self._departures += 1

    def late(self, now: float) -> list[Waiting[W]]:
        """Those whose deadline is over; they are removed."""
        late: list[Waiting[W]] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            one = heappop(self._deadlines)[2]
            self.remove(one)
            late.append(one)
        return late

    def next_deadline(self) -> float | None:
        """When the first of them is late."""
        while self._deadlines and self._deadlines[0][2] not in self._present:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def next_ready(self, now: float) -> float | None:
        """When the first of those who let others come first has done so."""
        while self._ready and (self._ready[0][0] <= now or self._ready[0][2] not in self._present):
            heappop(self._ready)
        return self._ready[0][0] if self._ready else None

    def drain_per_s(self, now: float) -> float:
        """How many leave for a worker in a second in which somebody waits; 0 while too few have left to tell."""
        self._look(now)
        return self._drained.read(self._waited_s) if self._departures >= MIN_DEPARTURES else 0.0

    def _look(self, now: float) -> None:
        if self._present:
            self._waited_s += max(0.0, now - self._looked_at)
        self._looked_at = now

    def first(self, now: float) -> Waiting[W] | None:
        """Who is served first."""
        if len(self._bands) == 1:
            tenants = next(iter(self._bands.values()))
            if len(tenants) == 1:
                return next(iter(tenants.values()))[0]
        return next(self.in_order(now), None)

    def in_order(self, now: float) -> Iterator[Waiting[W]]:
        """All of them, the first to be served first. They may be removed on the way, nobody may be added."""
        bands = self._bands
        if len(bands) < 2:
            for tenants in [*bands.values()]:
                yield from self._in_turns(tenants)
            return
        risen: dict[int, list[Waiting[W]]] = {}
        for one in self._old(now):
            risen.setdefault(one.priority(now), []).append(one)
        old = {one for ones in risen.values() for one in ones}
        for priority in sorted({*bands, *risen}, reverse=True):
            if priority in bands:
                yield from [one for one in self._in_turns(bands[priority]) if one not in old]
            yield from risen.get(priority, ())

    def _old(self, now: float) -> list[Waiting[W]]:
        """Those who have waited for so long that they rise, the oldest first."""
        arrivals = self._arrivals
        while arrivals and arrivals[0] not in self._present:
            arrivals.popleft()
        young = takewhile(lambda one: one.since <= now - BAND_AGE_S, arrivals)
        return [one for one in young if one in self._present]

    def _in_turns(self, tenants: dict[str, list[Waiting[W]]]) -> Iterator[Waiting[W]]:
        if len(tenants) == 1:
            yield from _each(next(iter(tenants.values())))
            return
        # Each is charged as if it went, so that tenants take turns in the order too.
        turns = [(self._counters.of(tenant), tenant, _each(waiting)) for tenant, waiting in tenants.items()]
        heapify(turns)
        while turns:
            served, tenant, rest = turns[0]
            one = next(rest, None)
            if one is None:
                heappop(turns)
                continue
            yield one
            heapreplace(turns, (served + one.tokens, tenant, rest))


def _each(waiting: list[Waiting[W]]) -> Iterator[Waiting[W]]:
    """One after another, of which each may be removed when its turn is over, without a copy of all."""
    index = 0
    while index < len(waiting):
        one = waiting[index]
        yield one
        if index < len(waiting) and waiting[index] is one:
            index += 1


def _key(one: Waiting[W]) -> float:
    return one.key
