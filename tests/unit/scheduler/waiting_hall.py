"""A scheduler whose workers have little room, and those who ask at its desk and note what they hear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random

from lbcore.errors import LoadBalancerError
from lbcore.policies.assignments import Assignments
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Registered, Released, Reported, Ticked
from lbcore.router import QueueLimits
from lbcore.scheduler.desk import Place
from lbcore.scheduler.state import SchedulerState
from lbcore.types import Capacity, Epoch, LoadReport, Route, RouteFacts, TicketPhase, TicketUpdate, WorkerId
from tests.fakes import ManualClock
from tests.fleet import MODEL, measured, spec

ONE = Capacity(max_sequences=1)
AT_ONCE = QueueLimits(late_binding=False)


@dataclass(eq=False)
class Asker:
    """One request, and what was said of it."""

    name: str
    heard: list[Route | LoadBalancerError]
    place: Place | None = None
    is_withdrawn: bool = False
    on_answer: Callable[[], None] = lambda: None

    @property
    def waits(self) -> bool:
        return not self.heard and not self.is_withdrawn

    @property
    def route(self) -> Route:
        [answer] = self.heard
        assert isinstance(answer, Route), answer
        return answer

    @property
    def error(self) -> LoadBalancerError:
        [answer] = self.heard
        assert isinstance(answer, LoadBalancerError), answer
        return answer

    def hear(self, answer: Route | LoadBalancerError) -> None:
        assert self.place is not None, "nobody is told from inside the question"
        self.heard.append(answer)
        self.on_answer()

    def withdraw(self) -> None:
        if self.place is not None:
            self.is_withdrawn = self.is_withdrawn or not self.heard
            self.place.withdraw()


class Hall:
    """The state, its clock, and everybody who has asked."""

    def __init__(self, *workers: str, limits: QueueLimits = AT_ONCE, capacity: Capacity = ONE) -> None:
        self.clock = ManualClock()
        pool = WorkerPool(lease_ttl_s=1e6, ticket_ttl_s=1e6)
        self.state = SchedulerState(pool, Assignments.of(build_policy("cost")), self.clock, Random(0), 12345, limits)
        self.order: list[str] = []
        """Who was routed, in that order."""
        self._names = (f"r{number}" for number in count())
        self._sequence = count(1)
        for name in workers:
            self.join(name, capacity)

    def join(self, name: str, capacity: Capacity = ONE) -> None:
        self.state.handle(Registered(spec(name, capacity=capacity), 1))
        self.state.handle(measured(name, next(self._sequence)))

    def ask(
        self,
        name: str = "",
        *,
        timeout_s: float | None = None,
        prompt_bytes: int = 400,
        priority: int = 0,
        tenant: str = "",
        model: str = MODEL,
    ) -> Asker:
        asker = Asker(name or next(self._names), [])
        facts = RouteFacts(asker.name, model, prompt_bytes, priority=priority, tenant=tenant)
        try:
            found = self.state.desk.ask(facts, lambda answer: self._tell(asker, answer), timeout_s)
        except LoadBalancerError as error:
            asker.heard.append(error)
            return asker
        if isinstance(found, Place):
            asker.place = found
        else:
            self.order.append(asker.name)
            asker.heard.append(found)
        return asker

    def finish(self, asker: Asker) -> None:
        """The worker of a request reports that it is done."""
        route = asker.route
        update = TicketUpdate(route.ticket, TicketPhase.FINISHED)
        self.report(route.target.worker_id, update)

    def report(self, name: str, *updates: TicketUpdate) -> None:
        report = LoadReport(next(self._sequence), ticket_updates=updates)
        self.state.handle(Reported(WorkerId(name), Epoch(1), report))

    def release(self, asker: Asker) -> None:
        self.state.handle(Released((asker.route.ticket,)))

    def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.state.handle(Ticked())

    def serve(self) -> float | None:
        return self.state.desk.serve()

    def sleep(self) -> None:
        """Lets time pass until who waits is to be served, and serves."""
        wake = self.serve()
        assert wake is not None
        self.clock.advance(wake - self.clock.now())
        self.serve()

    @property
    def waiting(self) -> int:
        return self.state.desk.waiting(MODEL)

    @property
    def credit(self) -> tuple[int, int]:
        """Requests and tokens that are booked."""
        endpoints = self.state.pool.endpoints()
        return sum(one.credit_requests for one in endpoints), sum(one.credit_tokens for one in endpoints)

    def _tell(self, asker: Asker, answer: Route | LoadBalancerError) -> None:
        if isinstance(answer, Route):
            self.order.append(asker.name)
        asker.hear(answer)
