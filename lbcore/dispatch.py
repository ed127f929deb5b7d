"""One request's way: ask for a route, send it there, go elsewhere when that fails before the first token.

Used by the gateway and by `lbcore.client`; a request takes the same way from both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from lbcore.clock import Clock
from lbcore.errors import LoadBalancerError, NoReadyWorker, Saturated, StreamInterrupted, WorkerUnreachable
from lbcore.flow import Flow, Inbox, Take
from lbcore.generation import Delta, Event, Failed, Finished, GenerationRequest
from lbcore.types import NO_TICKET, Route, RouteFacts, Target, Ticket, WorkerId
from lbcore.wire.clients import Call, GenerationClients
from lbcore.wire.routing_client import Question, RoutingClient

MAX_ATTEMPTS = 3
"""Workers tried for one request; a request that three workers could not serve is likelier to be at fault than they."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request at one worker, for metrics and logs."""

    worker_id: WorkerId
    error: LoadBalancerError | None
    """None while it goes well."""
    route: Route | None = None
    """Of one that begins: what was said of where to go."""


def _nobody(attempt: Attempt) -> None:
    """Hears of an attempt that interests nobody."""


End = Finished | Exception
"""How a request ended: with an answer, or of what."""


class Dispatch:
    """One request on its way to an answer.

    It goes from one callback to the next, in the turns of the event loop in which the scheduler and the workers are
    heard: a task of its own would cost a request more than everything that is decided here.
    """

    __slots__ = (
        "_abandoned",
        "_began",
        "_call",
        "_done",
        "_facts",
        "_failure",
        "_fallbacks",
        "_has_passed_on",
        "_heard",
        "_held",
        "_is_cancelled",
        "_observe",
        "_owner",
        "_question",
        "_request",
        "_route",
        "_take",
        "_tried",
    )

    def __init__(
        self,
        owner: Dispatcher,
        facts: RouteFacts,
        request: GenerationRequest,
        take: Take,
        done: Callable[[End], None],
        observe: Callable[[Attempt], None],
    ) -> None:
        self._owner = owner
        self._facts = facts
        self._request = request
        self._take = take
        self._done = done
        self._observe = observe
        self._tried: frozenset[WorkerId] = frozenset()
        self._abandoned: tuple[Ticket, ...] = ()
        self._fallbacks: tuple[Target, ...] = ()
        self._failure: LoadBalancerError | None = None
        self._question: Question | None = None
        self._call: Call | None = None
        self._is_cancelled = False
        self._began = owner.clock.now()
        self._ask()

    def cancel(self) -> None:
        """Stops the request: the worker is told, nothing stays booked, and nobody hears of it any more."""
        self._is_cancelled = True
        if self._question is not None:
            self._question.cancel()
        if self._call is not None:
            self._let_go()

    def _ask(self) -> None:
        facts = self._facts._replace(tried=self._facts.tried | self._tried) if self._tried else self._facts
        self._question = self._owner.routing.ask(facts, self._answered, self._abandoned, self._left_s())

    def _left_s(self) -> float | None:
        """What is left of the request's own time; it passes while the request waits for a worker, too."""
        timeout_s = self._request.timeout_s
        return None if timeout_s is None else timeout_s - (self._owner.clock.now() - self._began)

    def _answered(self, route: Route | LoadBalancerError) -> None:
        self._question = None
        if self._stopped():
            return
        if isinstance(route, LoadBalancerError):
            refusal = route
            # Nobody ready, as far as anybody knows: the last decision's other candidates may still be there. Full ones
            # are not asked, a model that is not there is nowhere, and a deadline is over everywhere.
            target = next((t for t in self._fallbacks if t.worker_id not in self._tried), None)
            if target is None or not isinstance(refusal, NoReadyWorker):
                self._done(_verdict(self._failure, refusal))
                return
            route = Route(target, NO_TICKET)
        target = route.target
        self._route = route
        self._tried |= {target.worker_id}
        self._fallbacks = route.fallbacks or self._fallbacks
        self._observe(Attempt(target.worker_id, None, route))
        if self._stopped():
            self._owner.routing.release(route.ticket)
            return
        # Nothing is passed on before the first token: until then another worker can start afresh. Embeddings have no
        # tokens, and are kept here until they are complete.
        self._held: list[Event] = []
        self._heard = False
        self._has_passed_on = False
        request = self._request._replace(ticket=route.ticket, timeout_s=self._left_s())
        if target.wants_prefix_hashes:
            facts = self._facts
            request = request._replace(
                prefix_hashes=facts.prefix_hashes,
                prefix_block_bytes=facts.prefix_block_bytes,
                prompt_bytes=facts.prompt_bytes,
            )
        self._call = self._owner.workers.to(target).begin(request, self._hear)

    def _hear(self, events: list[Event], flow: Flow) -> None:
        last = events[-1]
        if self._has_passed_on and type(last) is Delta:
            self._hand_on(events, flow)
            return
        self._heard = True
        has_failed = type(last) is Failed
        if has_failed:
            events.pop()
        if not self._has_passed_on:
            events = self._held = self._held + events
            if not has_failed and (type(last) is Finished or any(type(event) is Delta for event in events)):
                self._has_passed_on = True
        if self._has_passed_on and events:
            self._hand_on(events, flow)
        if self._stopped():
            return
        if type(last) is Finished:
            self._let_go()
            self._done(last)
        elif type(last) is Failed:
            self._let_go()
            self._failed(last.error)

    def _hand_on(self, events: list[Event], flow: Flow) -> None:
        try:
            self._take(events, flow)
        except Exception as error:
            if not self._stopped():
                self._is_cancelled = True
                self._let_go()
                self._done(error)

    def _failed(self, failure: LoadBalancerError) -> None:
        self._failure = failure
        self._observe(Attempt(self._route.target.worker_id, failure))
        if self._stopped():
            self._owner.routing.release(self._route.ticket)
            return
        if self._has_passed_on:
            if isinstance(failure, WorkerUnreachable):
                failure = StreamInterrupted("The worker was lost in the middle of the answer.")
            self._done(failure)
        elif not failure.retry_elsewhere or len(self._tried) >= MAX_ATTEMPTS:
            self._owner.routing.release(self._route.ticket)
            self._done(failure)
        else:
            self._abandoned = (self._route.ticket,)
            self._ask()

    def _stopped(self) -> bool:
        """Whether it was cancelled, perhaps by whom it has just called."""
        return self._is_cancelled

    def _let_go(self) -> None:
        """Of the call: it has ended, or is not wanted any more."""
        call, self._call = self._call, None
        if call is None:
            return
        call.cancel()
        if not self._heard:
            # Given up before a word from the worker, which may never have heard of the ticket.
            self._owner.routing.release(self._route.ticket)


class Dispatcher:
    """Carries requests to workers."""

    def __init__(self, routing: RoutingClient, workers: GenerationClients, clock: Clock) -> None:
        self.routing = routing
        self.workers = workers
        self.clock = clock

    def start(
        self,
        facts: RouteFacts,
        request: GenerationRequest,
        take: Take,
        done: Callable[[End], None],
        observe: Callable[[Attempt], None] = _nobody,
    ) -> Dispatch:
        """Has a request answered; `done` is called once, after its last event was taken or with why there is none.

        `request.timeout_s` is the time for all attempts together, and for finding out where to make them. `take` gets
        the events of one attempt, from its first token on. `observe` hears of every attempt when it begins, and again
        if it fails. None of them is called before this has returned, or after `cancel`. The error that `done` may get
        is a LoadBalancerError (StreamInterrupted: there is no rest of the answer), or what `take` raised.
        """
        return Dispatch(self, facts, request, take, done, observe)

    async def run(
        self,
        facts: RouteFacts,
        request: GenerationRequest,
        take: Take,
        observe: Callable[[Attempt], None] = _nobody,
    ) -> Finished:
        """The same for a caller that waits. Cancel it to stop the request.

        Raises:
            LoadBalancerError: as `start` tells it.
        """
        end: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()

        def done(how: End) -> None:
            if end.done():
                return
            if isinstance(how, Finished):
                end.set_result(how)
            else:
                end.set_exception(how)

        dispatch = self.start(facts, request, take, done, observe)
        try:
            return await end
        finally:
            dispatch.cancel()
            if end.done() and not end.cancelled():
                # One whose caller was cancelled in the same turn would be complained of.
                end.exception()

    async def batches(
        self, facts: RouteFacts, request: GenerationRequest, observe: Callable[[Attempt], None] = _nobody
    ) -> AsyncGenerator[list[Event], None]:
        """The same for a reader that asks for the events in its own time; the last batch ends with Finished.

        Close the iterator to stop the request.

        Raises:
            LoadBalancerError: as `start` tells it, after what came before.
        """
        inbox = Inbox()
        running = asyncio.get_running_loop().create_task(self.run(facts, request, inbox.take, observe))
        running.add_done_callback(lambda _: inbox.close())
        try:
            while batch := await inbox.events():
                yield batch
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _verdict(failure: LoadBalancerError | None, refusal: LoadBalancerError) -> LoadBalancerError:
    # "Nobody else is ready" hides why the first one failed; a full fleet and an engine's error are worth saying.
    if failure is not None and not isinstance(failure, WorkerUnreachable) and isinstance(refusal, NoReadyWorker):
        return failure
    return refusal if not isinstance(failure, Saturated) else failure
