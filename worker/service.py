"""GenerationService over an engine: admits requests, counts them, and carries their events to whoever asked.

Generate and GenerateStream are two doors to the same room: `Sessions.begin` takes a request and a sink for its events.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog

from lbcore.api.v1 import generation_pb2, generation_pb2_grpc
from lbcore.clock import Clock
from lbcore.deadlines import Deadlines
from lbcore.errors import (
    Cancelled,
    CannotContinue,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    Saturated,
)
from lbcore.flow import ROOM
from lbcore.generation import Delta, Embedding, Event, Failed, Finished, GenerationRequest, Started
from lbcore.log import info_often
from lbcore.types import Ticket
from lbcore.wire.convert import call_events, generation_from_proto, response_from_event
from lbcore.wire.mux import serve_mux
from lbcore.wire.server import Registration, service
from lbcore.wire.status import abort
from worker.engine import Emit, Engine
from worker.lanes import Lane, Lanes
from worker.load import InFlight, LoadTracker

log = structlog.get_logger()


NUDGE_S = 1.0
"""How long what a caller reads as a whole is kept back at most: he may want to know that it is still being made."""


class Session:
    """One request in the engine.

    Its sink hears one end, at once when the request is stopped from outside; it counts as load until the engine itself
    has let go of it.
    """

    __slots__ = (
        "_counts",
        "_emit",
        "_is_over",
        "_load",
        "_owner",
        "_stopped",
        "_timeout_s",
        "key",
        "request_id",
    )

    def __init__(self, owner: Sessions, key: str, request_id: str, counts: InFlight, emit: Emit) -> None:
        self._owner = owner
        self._load = owner.load
        self._counts = counts
        self._emit = emit
        self._stopped: LoadBalancerError | None = None
        self._is_over = False
        self._timeout_s: float | None = None
        self.key = key
        self.request_id = request_id

    def take(self, event: Event) -> None:
        """Counts an event of the engine and passes it on."""
        # Once per token, and cheaper than `match`.
        if type(event) is Delta:
            if not self._counts.prefilled:
                self._load.prefilled(self.key, self._owner.clock.now())
                self._owner.changed()
            # An engine that does not tell tokens still shows progress: a delta is about one.
            self._load.generated(self.key, len(event.token_ids) or (1 if event.text else 0))
        elif type(event) is Started:
            self._load.started(self.key, event.prompt_tokens, event.cached_tokens, self._owner.clock.now())
            self._owner.changed()
        elif type(event) is Finished:
            self._count_end(event)
            self._end(None)
        elif type(event) is Embedding:
            # Nothing was generated, but the prompt is behind it.
            if not self._counts.prefilled:
                self._load.prefilled(self.key, self._owner.clock.now())
                self._owner.changed()
        elif type(event) is Failed:
            self._end(event.error)
        if self._stopped is None:
            self._emit(event)

    def stop(self, error: LoadBalancerError) -> None:
        """Ends the request in `error` and tells the engine to let go of it. Once it has ended this does nothing."""
        if self._stopped is None and not self._is_over:
            self._stopped = error
            self._emit(Failed(error))
            self._owner.engine.abort(self.key)

    def stop_after(self, timeout_s: float) -> None:
        """Gives the request a deadline from now."""
        self._timeout_s = timeout_s
        self._owner.deadlines.add(self, timeout_s)

    def expire(self) -> None:
        """Its time is over."""
        self.stop(DeadlineExceeded(f"The request did not finish within {self._timeout_s:g} s."))

    def _count_end(self, event: Finished) -> None:
        """The engine's own counts have the last word, so that totals agree with the usage clients see."""
        counts, prompt_tokens, cached_tokens = self._counts, event.prompt_tokens, event.cached_tokens
        if prompt_tokens and not (
            counts.counted and counts.prompt_tokens == prompt_tokens and counts.cached_tokens == cached_tokens
        ):
            self._load.counted(self.key, prompt_tokens, cached_tokens)
        if event.output_tokens > counts.output_tokens:
            self._load.generated(self.key, event.output_tokens - counts.output_tokens)

    def _end(self, error: LoadBalancerError | None) -> None:
        self._is_over = True
        if self._timeout_s is not None:
            self._owner.deadlines.drop(self)
        error = self._stopped or error
        self._owner.end(self, error)
        counts = self._counts
        uncounted = 0 if counts.started else None
        info_often(
            "request_ended",
            {
                "request_id": self.request_id,
                "reason": error.reason if error is not None else None,
                "prompt_tokens": counts.prompt_tokens if counts.counted else uncounted,
                "cached_tokens": counts.cached_tokens if counts.counted else uncounted,
                "output_tokens": counts.output_tokens,
            },
        )


class Sessions:
    """All requests of a worker: who may come in, who is there, and what that makes as load.

    `changed` is called whenever the load changed in a way the scheduler should hear of at once.
    """

    def __init__(
        self, engine: Engine, load: LoadTracker, capacity: int, changed: Callable[[], None], clock: Clock
    ) -> None:
        self.clock = clock
        self.engine = engine
        self.load = load
        self.changed = changed
        self.capacity = capacity
        """Requests that may be here at once, running and queued."""
        self.ends: Counter[str] = Counter()
        """How many requests ended so far, by the reason of their error; "OK" for those without, or "REFUSED"."""
        self.deadlines = Deadlines()
        self._sessions: dict[str, Session] = {}
        #: Ways out of accepted requests, some of which the engine has answered and nobody has written to the end.
        self._lanes: set[Lane] = set()
        self._serial = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._nudging: asyncio.TimerHandle | None = None
        self.continues = False
        """Whether the engine goes on with answers that other workers began."""
        self.refusal: LoadBalancerError | None = None
        """When set, new requests end in this: the worker is draining or its engine is gone."""

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, request: GenerationRequest, lane: Lane) -> None:
        """Hands a request to the engine; its events leave through the lane. A refusal is a Failed there at once."""
        error = self.refusal
        if error is None and max(len(self._sessions), len(self._lanes)) >= self.capacity:
            error = Saturated("The worker's queue is full.")
        if error is None and request.continuation is not None and not self.continues:
            error = CannotContinue("The engine does not go on with what another worker began.")
        if error is not None:
            self.refused(request.ticket)
            lane.put(Failed(error))
            return
        # Ids come from clients and may repeat; the engine's must not.
        self._serial += 1
        key = f"{request.request_id}#{self._serial}"
        counts = self.load.accepted(key, request.ticket, len(request.body), self.clock.now())
        session = Session(self, key, request.request_id, counts, lane.put)
        lane.stop = session.stop
        lane.left = self._left
        self._idle.clear()
        self._lanes.add(lane)
        if self._nudging is None:
            self._nudging = asyncio.get_running_loop().call_later(NUDGE_S, self._nudge)
        self._sessions[key] = session
        self.changed()
        try:
            # `_replace` would take twice as long.
            self.engine.submit(GenerationRequest(key, *request[1:]), session.take)
        except Exception:
            # Against the contract; without this the request would count as load for ever.
            log.exception("engine_refused", request_id=request.request_id)
            session.take(Failed(EngineFailed("The engine could not take the request.")))
            return
        if request.timeout_s is not None and key in self._sessions:
            session.stop_after(request.timeout_s)

    def refused(self, ticket: Ticket) -> None:
        """A request that nobody here can take: its dispatch is over."""
        self.ends["REFUSED"] += 1
        self.load.refused(ticket)
        self.changed()

    def end(self, session: Session, error: LoadBalancerError | None) -> None:
        """A session is over."""
        self.ends[error.reason if error is not None else "OK"] += 1
        del self._sessions[session.key]
        self.load.finished(session.key, self.clock.now())
        self.changed()
        self._rest_if_idle()

    def _nudge(self) -> None:
        self._nudging = None
        for lane in self._lanes:
            lane.nudge()
        if self._lanes:
            self._nudging = asyncio.get_running_loop().call_later(NUDGE_S, self._nudge)

    def _left(self, lane: Lane) -> None:
        self._lanes.discard(lane)
        self._rest_if_idle()

    def _rest_if_idle(self) -> None:
        if not self._sessions and not self._lanes:
            self._idle.set()

    def abort(self, request_id: str) -> bool:
        """Stops every request with this id; False when there is none."""
        found = [session for session in self._sessions.values() if session.request_id == request_id]
        for session in found:
            session.stop(Cancelled("The request was aborted."))
        return bool(found)

    def stop_all(self, error: LoadBalancerError) -> None:
        """Stops every request."""
        for session in [*self._sessions.values()]:
            session.stop(error)

    async def idle(self) -> None:
        """Returns once no request is left, and no answer that is yet to be written."""
        await self._idle.wait()


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The gRPC face of `Sessions`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._streams: set[_Stream] = set()
        #: For each call under way, what is done when its status was sent behind all else, or its client is gone.
        self._calls: set[asyncio.Future[None]] = set()

    def end_streams(self) -> None:
        """Ends the streams that are open, each behind what is ready to be said on it."""
        for stream in self._streams:
            stream.lanes.close()

    async def ended(self) -> None:
        """Returns once the calls that are under way now have ended, and gRPC has sent all that was written to them."""
        if self._calls:
            await asyncio.wait(self._calls)

    def registration(self) -> Registration:
        """What a server needs to serve this."""
        return service(generation_pb2, "GenerationService", self)

    async def Generate(  # noqa: N802
        self,
        message: generation_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        try:
            request = generation_from_proto(message)
        except InvalidRequest as error:
            self._sessions.refused(Ticket(message.ticket))
            await abort(context, error)
        self._follow(context)
        lanes = Lanes()
        lane = lanes.open(0, ROOM)
        self._sessions.begin(request, lane)
        try:
            while True:
                events = await lanes.take()
                for _, event, _ in events:
                    if isinstance(event, Failed):
                        await abort(context, event.error)
                    try:
                        response = response_from_event(event)
                    except EngineFailed as error:
                        lane.stop(error)
                        await abort(context, error)
                    # Returns when gRPC has room again: what it does not take now waits in the lane.
                    yield response
                    if isinstance(event, Finished):
                        return
                lanes.make_room(0, len(events))
        finally:
            lanes.drop_all()
            lane.stop(Cancelled("The caller went away."))

    async def GenerateStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[generation_pb2.GenerateStreamRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        self._follow(context)
        stream = _Stream(self._sessions)
        self._streams.add(stream)
        try:
            await serve_mux(context, stream.deliver, stream.lanes, stream.build, stream.lanes.half_close)
        except InvalidRequest as error:
            await abort(context, error)
        finally:
            self._streams.discard(stream)
            stream.stop()

    async def Abort(  # noqa: N802
        self, message: generation_pb2.AbortRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.AbortResponse:
        if not message.request_id:
            # Many requests may have come without an id, and their callers know nothing of one another.
            await abort(context, InvalidRequest("request_id is empty", param="request_id"))
        return generation_pb2.AbortResponse(found=self._sessions.abort(message.request_id))

    def _follow(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls.add(ended)

        def end(context: object) -> None:
            self._calls.discard(ended)
            ended.set_result(None)

        context.add_done_callback(end)  # type: ignore[arg-type]  # its stubs want a class of theirs


class _Stream:
    """The calls of one GenerateStream."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.lanes = Lanes()

    def deliver(self, message: generation_pb2.GenerateStreamRequest) -> None:
        """Takes what the caller said.

        Raises:
            InvalidRequest: the caller gave a number twice.
        """
        for call in message.calls:
            self._begin(call)
        for room in message.rooms:
            self.lanes.make_room(room.call_id, room.event_count)
        for call_id in message.cancelled_call_ids:
            lane = self.lanes.drop(call_id)
            if lane is not None:
                lane.stop(Cancelled("The caller went away."))

    def build(self, events: list[tuple[int, Event, bool]]) -> generation_pb2.GenerateStreamResponse:
        """Events as a message; a call of which something cannot be said is over."""
        return call_events(events, self.lanes.refuse)

    def stop(self) -> None:
        """The stream is over, and nobody hears of its calls any more."""
        for lane in self.lanes.drop_all():
            lane.stop(Cancelled("The caller went away."))

    def _begin(self, message: generation_pb2.GenerateCall) -> None:
        lane = self.lanes.open(message.call_id, message.room, not message.without_token_ids, message.whole)
        try:
            request = generation_from_proto(message.request)
        except InvalidRequest as error:
            self._sessions.refused(Ticket(message.request.ticket))
            lane.put(Failed(error))
            return
        self._sessions.begin(request, lane)
