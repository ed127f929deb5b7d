"""One request's way: ask for a route, send it there, go elsewhere when that fails before the first token.

Used by the gateway and by `lbcore.client`; a request takes the same way from both.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from lbcore.clock import Clock
from lbcore.errors import (
    DeadlineExceeded,
    LoadBalancerError,
    NoReadyWorker,
    Saturated,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.generation import Delta, Event, Failed, Finished, GenerationRequest
from lbcore.types import NO_TICKET, Route, RouteFacts, Target, Ticket, WorkerId
from lbcore.wire.clients import GenerationClients, RoutingClient

ROUTE_TIMEOUT_S = 5.0
"""A scheduler that says nothing for so long counts as gone. It answers in about a millisecond; five seconds forgive it
a pause, and are over before people give up."""

MAX_ATTEMPTS = 3
"""Workers tried for one request; a request that three workers could not serve is likelier to be at fault than they."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request at one worker, for metrics and logs."""

    worker_id: WorkerId
    error: LoadBalancerError | None
    """None while it goes well."""


def _nobody(attempt: Attempt) -> None:
    """Hears of an attempt that interests nobody."""


class Dispatcher:
    """Carries requests to workers."""

    def __init__(self, routing: RoutingClient, workers: GenerationClients, clock: Clock) -> None:
        self._routing = routing
        self._workers = workers
        self._clock = clock

    async def run(
        self, facts: RouteFacts, request: GenerationRequest, observe: Callable[[Attempt], None] = _nobody
    ) -> AsyncGenerator[list[Event], None]:
        """The answer to a request, in batches of whatever has arrived; the last batch ends with Finished.

        `request.timeout_s` is the time for all attempts together, and for finding out where to make them.
        `observe` hears of every attempt when it begins, and again if it fails. Close the iterator to stop the request:
        the worker is told and nothing stays booked.

        Raises:
            LoadBalancerError: there is no answer, or (StreamInterrupted) no rest of it.
        """
        tried: set[WorkerId] = set()
        abandoned: tuple[Ticket, ...] = ()
        fallbacks: tuple[Target, ...] = ()
        failure: LoadBalancerError | None = None
        began = self._clock.now()
        while True:
            left_s = None if request.timeout_s is None else request.timeout_s - (self._clock.now() - began)
            try:
                route = await self._route(replace(facts, tried=facts.tried | tried), abandoned, left_s)
            except LoadBalancerError as error:
                # Nobody ready, as far as anybody knows: the last decision's other candidates may still be there. Full
                # ones are not asked, a model that is not there is nowhere, and a deadline is over everywhere.
                target = next((t for t in fallbacks if t.worker_id not in tried), None)
                if target is None or not isinstance(error, NoReadyWorker):
                    raise self._verdict(failure, error) from error
                route = Route(target, NO_TICKET)
            tried.add(route.target.worker_id)
            fallbacks = route.fallbacks or fallbacks
            observe(Attempt(route.target.worker_id, None))
            # Nothing is passed on before the first token: until then another worker can start afresh. Embeddings have
            # no tokens, and wait here until they are complete.
            held: list[Event] = []
            passed_on = False
            call = self._workers.to(route.target).begin(replace(request, ticket=route.ticket, timeout_s=left_s))
            heard = False
            try:
                while True:
                    news = await call.events()
                    held += news
                    heard = True
                    last = news[-1]
                    if isinstance(last, Failed):
                        break
                    if passed_on or isinstance(last, Finished) or any(isinstance(event, Delta) for event in news):
                        yield held
                        passed_on = True
                        held = []
                        if isinstance(last, Finished):
                            return
            finally:
                call.cancel()
                if not heard:
                    # Given up before a word from the worker, which may never have heard of the ticket.
                    self._routing.release(route.ticket)
            failure = last.error
            observe(Attempt(route.target.worker_id, failure))
            if passed_on:
                if len(held) > 1:
                    yield held[:-1]
                if isinstance(failure, WorkerUnreachable):
                    raise StreamInterrupted("The worker was lost in the middle of the answer.")
                raise failure
            if not failure.retry_elsewhere or len(tried) >= MAX_ATTEMPTS:
                self._routing.release(route.ticket)
                raise failure
            abandoned = (route.ticket,)

    async def _route(self, facts: RouteFacts, abandoned: tuple[Ticket, ...], left_s: float | None) -> Route:
        if left_s is not None and left_s < ROUTE_TIMEOUT_S:
            return await self._routing.route(facts, abandoned, left_s)
        try:
            return await self._routing.route(facts, abandoned, ROUTE_TIMEOUT_S)
        except DeadlineExceeded:
            raise NoReadyWorker("The scheduler does not answer.") from None

    @staticmethod
    def _verdict(failure: LoadBalancerError | None, refusal: LoadBalancerError) -> LoadBalancerError:
        # "Nobody else is ready" hides why the first one failed; a full fleet and an engine's error are worth saying.
        if failure is not None and not isinstance(failure, WorkerUnreachable) and isinstance(refusal, NoReadyWorker):
            return failure
        return refusal if not isinstance(failure, Saturated) else failure
