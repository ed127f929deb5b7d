"""One request's way: ask for a route, send it there, go elsewhere when that fails.

Before the first token another worker starts afresh; after it another worker goes on where the first one stopped, when
the request allows it. Used by the gateway and by `lbcore.client`; a request takes the same way from both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from lbcore.clock import Clock
from lbcore.errors import (
    CannotContinue,
    LoadBalancerError,
    ModelNotFound,
    NoReadyWorker,
    Saturated,
    SchedulerLost,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.flow import Flow, Inbox, Take
from lbcore.generation import Delta, Event, Failed, Finished, FinishReason, GenerationRequest, Started
from lbcore.kept_answer import KeptAnswer
from lbcore.retry_budget import RetryBudget
from lbcore.stalls import NEW, Progress, StallWatch
from lbcore.standby import Standby
from lbcore.types import NO_TICKET, Route, RouteFacts, Target, Ticket, WorkerId
from lbcore.wire.clients import Call, GenerationClients
from lbcore.wire.routing_client import Question, RoutingClient

MAX_ATTEMPTS = 3
"""Workers tried for one request, or for the rest of its answer; a request that three workers could not serve is
likelier to be at fault than they."""

MAX_CONTINUATIONS = 8
"""How often an answer is gone on with. One that kills whoever gives it must not go through a whole fleet."""

PATIENCE_S = 10.0
"""How long an answer under way waits for a worker to come back when there is none: a process is started again in less,
and its client has lost nothing yet."""

PAUSE_S = 0.25
"""Between two looks for one."""

STALL_S = 5.0
"""The least gap in an answer after which its worker is given up."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request at one worker, for metrics and logs."""

    worker_id: WorkerId
    error: LoadBalancerError | None
    """None while it goes well."""
    route: Route | None = None
    """Of one that begins: what was said of where to go."""
    continues: bool = False
    """Whether it goes on with an answer of which a part was passed on."""


def _nobody(attempt: Attempt) -> None:
    """Hears of an attempt that interests nobody."""


class _Ended:
    """The flow of events that no worker gives."""

    def pause(self) -> None:
        """There is nothing to keep back."""

    def resume(self) -> None:
        """Nothing was kept back."""


_MAKES_NO_DIFFERENCE = (WorkerUnreachable, CannotContinue, NoReadyWorker, Saturated)
"""What went wrong with the rest of an answer, when its client need only know that it will not come."""

End = Finished | Exception
"""How a request ended: with an answer, or of what."""


class Dispatch:
    """One request on its way to an answer.

    It goes from one callback to the next, in the turns of the event loop in which the scheduler and the workers are
    heard: a task of its own would cost a request more than everything that is decided here.
    """

    __slots__ = (
        "_abandoned",
        "_beats",
        "_began",
        "_broken_at",
        "_call",
        "_collected",
        "_continuations",
        "_done",
        "_facts",
        "_failure",
        "_fallbacks",
        "_has_passed_on",
        "_heard",
        "_held",
        "_is_cancelled",
        "_kept",
        "_observe",
        "_owner",
        "_pause",
        "_progress",
        "_question",
        "_request",
        "_route",
        "_take",
        "_tried",
        "first_token_at",
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
        self._has_passed_on = False
        self._kept = KeptAnswer() if request.may_continue else None
        # Of an answer that is read as a whole: until its end it can still be begun again.
        self._collected: list[Event] = []
        self.first_token_at: float | None = None
        """When the first token came, by the dispatcher's clock; None before, and of one that came with the end."""
        self._continuations = 0
        self._broken_at = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._beats = 0
        self._progress: Progress | None = None
        self._began = owner.clock.now()
        owner.retries.earn()
        self._ask()

    def cancel(self) -> None:
        """Stops the request: the worker is told, nothing stays booked, and nobody hears of it any more."""
        self._is_cancelled = True
        if self._question is not None:
            self._question.cancel()
        if self._call is not None:
            self._let_go()
        if self._pause is not None:
            self._pause.cancel()

    def look(self, now: float) -> None:
        """Gives the worker up if it has stopped answering. The watch over all answers calls this now and then."""
        call, progress = self._call, self._progress
        if call is None or progress is None:
            return
        tokens = self._beats if self._kept is None else self._kept.tokens
        if progress.is_stalled(self._beats, call.is_paused, tokens, now):
            self._let_go()
            self._failed(WorkerUnreachable("The worker has stopped answering."))

    def _ask(self) -> None:
        self._pause = None
        facts = self._facts._replace(tried=self._facts.tried | self._tried) if self._tried else self._facts
        continuation = self._request.continuation
        if continuation is not None and self._kept is not None:
            limit = facts.max_output_tokens
            facts = facts._replace(
                prompt_bytes=facts.prompt_bytes + len(continuation.text.encode("utf-8", "replace")),
                max_output_tokens=max(1, limit - self._kept.tokens) if limit else 0,
            )
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
            target = self._stand_in(refusal)
            if target is None:
                if not self._waits_for_somebody(refusal):
                    self._done(self._as_told(_verdict(self._failure, refusal)))
                return
            route = Route(target, NO_TICKET)
        target = route.target
        self._route = route
        self._tried |= {target.worker_id}
        self._fallbacks = route.fallbacks or self._fallbacks
        self._observe(Attempt(target.worker_id, None, route, self._request.continuation is not None))
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
        if self._owner.standby is not None:
            self._owner.standby.began(target.worker_id)

    def _hear(self, events: list[Event], flow: Flow) -> None:
        self._beats += 1
        if self._beats < NEW and self._progress is not None:
            self._progress.moved(self._beats, self._owner.clock.now())
        last = events[-1]
        if self._has_passed_on and type(last) is Delta:
            self._hand_on(events, flow)
            return
        self._heard = True
        if self._progress is None and type(last) is Delta:
            if self._owner.standby is not None:
                self._owner.standby.answered(self._route.target.worker_id)
            now = self._owner.clock.now()
            if self.first_token_at is None:
                self.first_token_at = now
            self._progress = Progress(self._beats, now, self._owner.stall_s)
            self._owner.stalls.add(self)
        has_failed = type(last) is Failed
        if has_failed:
            events.pop()
        if not self._has_passed_on:
            if self._request.continuation is not None:
                # The answer has begun long ago.
                events = [event for event in events if type(event) is not Started]
            events = self._held = self._held + events
            if not has_failed and (type(last) is Finished or any(type(event) is Delta for event in events)):
                self._has_passed_on = True
        if self._has_passed_on and events:
            if self._request.continuation is not None and type(last) is Finished and self._kept is not None:
                last = events[-1] = self._kept.completed(last)
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
        if self._kept is not None:
            self._kept.add(events)
        if self._request.is_whole:
            self._collected += events
            if type(events[-1]) is not Finished:
                return
            events = self._collected
        try:
            self._take(events, flow)
        except Exception as error:
            if not self._stopped():
                self._is_cancelled = True
                self._let_go()
                self._done(error)

    def _failed(self, failure: LoadBalancerError) -> None:
        self._failure = failure
        if self._owner.standby is not None and isinstance(failure, WorkerUnreachable):
            self._owner.standby.lost(self._route.target.worker_id, self._owner.clock.now())
        self._observe(Attempt(self._route.target.worker_id, failure))
        if self._stopped():
            self._owner.routing.release(self._route.ticket)
            return
        if self._has_passed_on:
            self._go_on(failure)
        elif isinstance(failure, CannotContinue) and self._request.is_whole:
            self._begin_again(failure)
        elif not self._may_try_again(failure):
            self._owner.routing.release(self._route.ticket)
            self._done(self._as_told(failure))
        else:
            self._abandoned = (self._route.ticket,)
            self._ask()

    def _may_try_again(self, failure: LoadBalancerError) -> bool:
        """Whether another worker is asked for what this one has not begun."""
        if not failure.retry_elsewhere or len(self._tried) >= MAX_ATTEMPTS:
            return False
        # The load of a worker that is lost has to go somewhere, and is no more than it was. What workers refuse or fail
        # at comes on top of what they have.
        return isinstance(failure, WorkerUnreachable) or self._owner.retries.spend()

    def _go_on(self, failure: LoadBalancerError) -> None:
        """Has another worker give the rest of an answer of which a part was passed on."""
        kept = self._kept
        if not failure.retry_elsewhere:
            self._done(failure)
            return
        if kept is None:
            self._begin_again(failure)
            return
        limit = self._facts.max_output_tokens
        if kept.finish_reason is None and limit and kept.has_all_token_ids and kept.tokens >= limit:
            self._hand_on([Delta(finish_reason=FinishReason.LENGTH)], _Ended())
        if self._stopped():
            return
        if kept.finish_reason is not None:
            # Only the end was lost.
            end = kept.finished()
            self._hand_on([end], _Ended())
            if not self._stopped():
                self._done(end)
            return
        continuation = kept.continuation()
        if continuation is None or self._continuations >= MAX_CONTINUATIONS:
            self._begin_again(failure)
            return
        self._continuations += 1
        self._broken_at = self._owner.clock.now()
        self._request = self._request._replace(continuation=continuation)
        self._tried = frozenset((self._route.target.worker_id,))
        self._abandoned = (self._route.ticket,)
        self._ask()

    def _begin_again(self, failure: LoadBalancerError) -> None:
        """Has another worker give all of an answer that nobody can go on with, if nothing of it was told."""
        if not self._request.is_whole or not self._may_try_again(failure):
            self._owner.routing.release(self._route.ticket)
            self._done(self._as_told(failure))
            return
        self._collected = []
        self._kept = KeptAnswer() if self._request.may_continue else None
        self._request = self._request._replace(continuation=None)
        self._abandoned = (self._route.ticket,)
        self._ask()

    def _stand_in(self, refusal: LoadBalancerError) -> Target | None:
        """Who may serve the request although the scheduler names nobody; None where its refusal is what it says."""
        if not isinstance(refusal, NoReadyWorker | ModelNotFound):
            # Full workers are not asked behind its back, and a deadline is over everywhere.
            return None
        standby, is_lost = self._owner.standby, isinstance(refusal, SchedulerLost)
        if isinstance(refusal, NoReadyWorker):
            # Nobody ready, as far as it knows: the last decision's other candidates may still be there.
            target = next((one for one in self._fallbacks if one.worker_id not in self._tried), None)
            if target is not None:
                return target
        if standby is None or len(self._tried) >= MAX_ATTEMPTS:
            return None
        tried, now = self._facts.tried | self._tried, self._owner.clock.now()
        return standby.pick(self._facts.model, tried, now, only_missing=not is_lost)

    def _waits_for_somebody(self, refusal: LoadBalancerError) -> bool:
        """Looks again in a while, since with the answer under way more is lost than with one that has not begun."""
        left_s = self._left_s()
        if (
            self._request.continuation is None
            or not isinstance(refusal, NoReadyWorker)
            or not isinstance(self._failure, WorkerUnreachable)
            or self._owner.clock.now() - self._broken_at >= PATIENCE_S
            or (left_s is not None and left_s <= PAUSE_S)
        ):
            return False
        # Who failed may be back, and nobody else is there.
        self._tried, self._fallbacks, self._abandoned = frozenset(), (), ()
        self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self._ask)
        return True

    def _as_told(self, failure: LoadBalancerError) -> LoadBalancerError:
        """What a failure is to whoever has a part of the answer; who reads it as a whole has none."""
        has_begun = (self._has_passed_on or self._request.continuation is not None) and not self._request.is_whole
        if (has_begun or isinstance(failure, CannotContinue)) and isinstance(failure, _MAKES_NO_DIFFERENCE):
            return StreamInterrupted("The worker was lost in the middle of the answer.")
        return failure

    def _stopped(self) -> bool:
        """Whether it was cancelled, perhaps by whom it has just called."""
        return self._is_cancelled

    def _let_go(self) -> None:
        """Of the call: it has ended, or is not wanted any more."""
        call, self._call = self._call, None
        if call is None:
            return
        if self._owner.standby is not None:
            self._owner.standby.ended(self._route.target.worker_id)
        if self._progress is not None:
            self._progress = None
            self._owner.stalls.drop(self)
        call.cancel()
        if not self._heard:
            # Given up before a word from the worker, which may never have heard of the ticket.
            self._owner.routing.release(self._route.ticket)


class Dispatcher:
    """Carries requests to workers."""

    def __init__(
        self,
        routing: RoutingClient,
        workers: GenerationClients,
        clock: Clock,
        stall_s: float = STALL_S,
        standby: Standby | None = None,
    ) -> None:
        """`stall_s`: an answer of which nothing comes for so long is gone on with elsewhere (`lbcore.stalls`).
        `standby` names workers when the scheduler cannot."""
        self.routing = routing
        self.standby = standby
        self.workers = workers
        self.clock = clock
        self.retries = RetryBudget()
        self.stall_s = stall_s
        self.stalls = StallWatch(clock)

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
        the events of one attempt, from its first token on; if the worker is lost then, and the request may continue,
        those that another worker goes on with, as if there had been one; of an answer that is read as a whole all at
        its end, before which it can be begun again. `observe` hears of every attempt when it
        begins, and again if it fails. None of them is called before this has returned, or after `cancel`. The error
        that `done` may get is a LoadBalancerError (StreamInterrupted: there is no rest of the answer), or what `take`
        raised.
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
