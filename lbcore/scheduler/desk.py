"""Where routes are asked for: decided at once, or later for requests that have to wait until a worker has room.

Those who wait are served when something has happened to the workers, and at moments that are known beforehand. Many
events of one turn of the event loop are one look: a look is a pick for each of the first in the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import structlog

from lbcore.clock import Clock
from lbcore.errors import LoadBalancerError, ModelNotFound
from lbcore.queue.room import Waiting
from lbcore.router import Router
from lbcore.scheduler.alarm import Alarm
from lbcore.scheduler.metrics import SchedulerMetrics
from lbcore.scheduler.refusals import error_of
from lbcore.types import Explanation, RefusalReason, Refused, Route, RouteFacts, Target, Ticket

log = structlog.get_logger()

Tell = Callable[[Route | LoadBalancerError], None]
"""Takes the answer to a request that waited. Must not raise."""

ROUNDING_S = 1e-6
"""Moments are sums of floats: a look that comes early by the error of one finds nothing, and would not be repeated."""


class Place:
    """Where a request waits until `tell` hears the answer, or it is withdrawn."""

    __slots__ = ("_desk", "facts", "since", "tell", "waiting")

    def __init__(self, desk: Desk, facts: RouteFacts, tell: Tell, since: float) -> None:
        self._desk = desk
        self.facts = facts
        self.tell = tell
        self.since = since
        self.waiting: Waiting[Place] | None = None
        """Its place in the router; None before it has one, and when it is answered or withdrawn."""

    def withdraw(self) -> None:
        """Nobody wants the answer any more: `tell` is not called, nothing stays booked. Harmless once it was."""
        self._desk.withdraw(self)


class Desk:
    """Who waits is in the router, has a `Place` that is not answered, and counts in `_waiting`; or none of the three.

    `alarm` rings when those who wait are to be served earlier than `serve` has said.
    """

    def __init__(
        self,
        router: Router[Place],
        clock: Clock,
        metrics: SchedulerMetrics,
        is_known: Callable[[str], bool],
        release: Callable[[Ticket], None],
    ) -> None:
        """`is_known` tells whether anybody ever served a model, `release` gives back what was booked for nobody."""
        self.alarm = Alarm(clock)
        self._router = router
        self._clock = clock
        self._metrics = metrics
        self._is_known = is_known
        self._release = release
        # How many wait, over all models.
        self._waiting = 0
        # Whether something has happened since those who wait were served.
        self._is_due = False
        # Bound once: the module's `log` looks its configuration up with every call, shown or not.
        self._log = structlog.get_logger().bind()

    def ask(self, facts: RouteFacts, tell: Tell, timeout_s: float | None = None) -> Route | Place:
        """Decides for one request and books it; or gives it a place to wait, and `tell` hears the answer from `serve`.

        The answer is DeadlineExceeded when `timeout_s` are over before a worker had room. Nobody is told of a request
        from inside its own question.

        Raises:
            ModelNotFound, NoReadyWorker: nobody can take it.
            Saturated, RateLimited: it would have to wait, and may not.
        """
        now = self._clock.now()
        if self._is_due:
            # Room that has become free is for those who wait before it is for who comes.
            self._serve(now)
        deadline = inf if timeout_s is None else now + timeout_s
        place = Place(self, facts, tell, now)
        answer = self._router.ask(place, facts, now, deadline)
        if isinstance(answer, Route):
            self._routed(facts, answer)
            return answer
        if isinstance(answer, Refused):
            raise self._refusal(answer, facts.model)
        place.waiting = answer
        self._waiting += 1
        waiting = self._router.waiting(facts.model)
        self._log.debug("waiting", request_id=facts.request_id, model=facts.model, waiting=waiting)
        # It may be the first to be served or to be late, and so sooner than what `serve` has said.
        self.alarm.ring()
        return place

    def explain(self, facts: RouteFacts) -> tuple[Target | None, Explanation]:
        """To whom a request with these facts would be sent now, or None when it would wait or be refused, and why.

        Nothing is booked.

        Raises:
            ModelNotFound: nobody serves the model.
        """
        decision, explanation, waits = self._router.explain(facts, self._clock.now())
        if isinstance(decision, Refused):
            if decision.reason is RefusalReason.MODEL_NOT_FOUND:
                raise ModelNotFound(f"No worker serves the model `{facts.model}`.")
            return None, explanation
        return None if waits else decision.endpoint.spec.target, explanation

    def withdraw(self, place: Place) -> None:
        """See `Place.withdraw`."""
        waiting, place.waiting = place.waiting, None
        if waiting is not None:
            self._waiting -= 1
            self._router.withdraw(waiting)

    def waiting(self, model: str) -> int:
        """How many requests wait for a model."""
        return self._router.waiting(model)

    def happened(self) -> None:
        """Something has happened to the workers, and there may be room for who waits."""
        if self._waiting and not self._is_due:
            self._is_due = True
            self.alarm.ring()

    def serve(self) -> float | None:
        """Answers those for whom there is an answer. Returns when to call it again; None for when the alarm rings."""
        now = self._clock.now()
        self._serve(now)
        wake = self._router.next_wake(now) if self._waiting else None
        return None if wake is None else wake + ROUNDING_S

    def _serve(self, now: float) -> None:
        self._is_due = False
        if not self._waiting:
            return
        for place, decision in self._router.serve(now):
            if place.waiting is None:
                # Withdrawn by who was told before it.
                self._give_back(decision)
                continue
            place.waiting = None
            self._waiting -= 1
            self._metrics.waited(now - place.since)
            answer: Route | LoadBalancerError
            if isinstance(decision, Refused):
                answer = self._refusal(decision, place.facts.model)
            else:
                answer = decision
                self._routed(place.facts, decision)
            try:
                place.tell(answer)
            except Exception:
                # Against the contract; the others who wait have no part in it.
                log.exception("answer_not_taken", request_id=place.facts.request_id)
                self._give_back(decision)

    def _give_back(self, decision: Route | Refused) -> None:
        if isinstance(decision, Route):
            self._release(decision.ticket)

    def _refusal(self, refused: Refused, model: str) -> LoadBalancerError:
        self._metrics.refused(refused.reason)
        return error_of(refused, model, self._is_known(model))

    def _routed(self, facts: RouteFacts, route: Route) -> None:
        worker_id = route.target.worker_id
        self._metrics.routed(worker_id)
        self._log.debug(
            "routed",
            request_id=facts.request_id,
            worker_id=worker_id,
            ticket=route.ticket,
            predicted_ttft_ms=route.predicted_ttft_ms,
        )
