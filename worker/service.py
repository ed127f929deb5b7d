"""GenerationService over an engine: admits requests, counts them, and carries their events to whoever asked.

Generate and GenerateStream are two doors to the same room: `Sessions.begin` takes a request and a sink for its events.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import structlog

from lbcore.api.v1 import generation_pb2, generation_pb2_grpc
from lbcore.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    Saturated,
)
from lbcore.generation import Delta, Embedding, Event, Failed, Finished, GenerationRequest, Started
from lbcore.types import Ticket
from lbcore.wire.convert import call_event, generation_from_proto, response_from_event
from lbcore.wire.mux import serve_mux
from lbcore.wire.outbox import Outbox
from lbcore.wire.server import Registration, service
from lbcore.wire.status import abort
from worker.engine import Emit, Engine
from worker.load import LoadTracker

log = structlog.get_logger()


class Session:
    """One request in the engine.

    Its sink hears one end, at once when the request is stopped from outside; it counts as load until the engine itself
    has let go of it.
    """

    __slots__ = ("_deadline", "_emit", "_owner", "_stopped", "key", "output_tokens", "request_id", "started")

    def __init__(self, owner: Sessions, key: str, request_id: str, emit: Emit) -> None:
        self._owner = owner
        self._emit = emit
        self._stopped: LoadBalancerError | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.key = key
        self.request_id = request_id
        self.started: Started | None = None
        self.output_tokens = 0

    def take(self, event: Event) -> None:
        """Counts an event of the engine and passes it on."""
        load = self._owner.load
        match event:
            case Delta():
                # An engine that does not tell tokens still shows progress: a delta is about one.
                tokens = len(event.token_ids) or (1 if event.text else 0)
                self.output_tokens += tokens
                load.generated(self.key, tokens)
            case Started():
                self.started = event
                load.started(self.key, event.prompt_tokens, event.cached_tokens)
                self._owner.changed()
            case Embedding():
                # Nothing was generated, but the prompt is behind it.
                load.generated(self.key, 0)
            case Finished():
                # The engine's own counts have the last word, so that totals agree with the usage clients see.
                if event.prompt_tokens:
                    load.counted(self.key, event.prompt_tokens, event.cached_tokens)
                    self.started = Started(event.prompt_tokens, event.cached_tokens)
                if event.output_tokens > self.output_tokens:
                    load.generated(self.key, event.output_tokens - self.output_tokens)
                    self.output_tokens = event.output_tokens
                self._end(None)
            case Failed():
                self._end(event.error)
        if self._stopped is None:
            self._emit(event)

    def stop(self, error: LoadBalancerError) -> None:
        """Ends the request in `error` and tells the engine to let go of it. The second time does nothing."""
        if self._stopped is None:
            self._stopped = error
            self._emit(Failed(error))
            self._owner.engine.abort(self.key)

    def stop_after(self, timeout_s: float) -> None:
        """Gives the request a deadline from now."""
        error = DeadlineExceeded(f"The request did not finish within {timeout_s:g} s.")
        self._deadline = asyncio.get_running_loop().call_later(timeout_s, self.stop, error)

    def _end(self, error: LoadBalancerError | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        error = self._stopped or error
        self._owner.end(self, error)
        log.info(
            "request_ended",
            request_id=self.request_id,
            reason=error.reason if error is not None else None,
            prompt_tokens=self.started.prompt_tokens if self.started else None,
            cached_tokens=self.started.cached_tokens if self.started else None,
            output_tokens=self.output_tokens,
        )


class Sessions:
    """All requests of a worker: who may come in, who is there, and what that makes as load.

    `changed` is called whenever the load changed in a way the scheduler should hear of at once.
    """

    def __init__(self, engine: Engine, load: LoadTracker, capacity: int, changed: Callable[[], None]) -> None:
        self.engine = engine
        self.load = load
        self.changed = changed
        self.capacity = capacity
        """Requests that may be here at once, running and queued."""
        self.ends: Counter[str] = Counter()
        """How many requests ended so far, by the reason of their error; "OK" for those without, or "REFUSED"."""
        self._sessions: dict[str, Session] = {}
        self._serial = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.refusal: LoadBalancerError | None = None
        """When set, new requests end in this: the worker is draining or its engine is gone."""

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, request: GenerationRequest, emit: Emit) -> Session | None:
        """Hands a request to the engine; its events come through `emit`.

        Returns None when it was refused: then `emit` has got a Failed already.
        """
        error = self.refusal
        if error is None and len(self._sessions) >= self.capacity:
            error = Saturated("The worker's queue is full.")
        if error is not None:
            self.refused(request.ticket)
            emit(Failed(error))
            return None
        # Ids come from clients and may repeat; the engine's must not.
        self._serial += 1
        key = f"{request.request_id}#{self._serial}"
        session = Session(self, key, request.request_id, emit)
        self._sessions[key] = session
        self._idle.clear()
        self.load.accepted(key, request.ticket, len(request.body))
        self.changed()
        try:
            self.engine.submit(replace(request, request_id=key), session.take)
        except Exception:
            # Against the contract; without this the request would count as load for ever.
            log.exception("engine_refused", request_id=request.request_id)
            session.take(Failed(EngineFailed("The engine could not take the request.")))
            return None
        if request.timeout_s is not None:
            session.stop_after(request.timeout_s)
        return session

    def refused(self, ticket: Ticket) -> None:
        """A request that nobody here can take: its dispatch is over."""
        self.ends["REFUSED"] += 1
        self.load.refused(ticket)
        self.changed()

    def end(self, session: Session, error: LoadBalancerError | None) -> None:
        """A session is over."""
        self.ends[error.reason if error is not None else "OK"] += 1
        del self._sessions[session.key]
        self.load.finished(session.key)
        self.changed()
        if not self._sessions:
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
        """Returns once no request is left."""
        await self._idle.wait()


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The gRPC face of `Sessions`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

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
        outbox: Outbox[Event] = Outbox()
        session = self._sessions.begin(request, outbox.put)
        try:
            while True:
                for event in await outbox.take():
                    if isinstance(event, (Finished, Failed)):
                        session = None
                    if isinstance(event, Failed):
                        await abort(context, event.error)
                    yield response_from_event(event)
                    if isinstance(event, Finished):
                        return
        finally:
            if session is not None:
                session.stop(Cancelled("The caller went away."))

    async def GenerateStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[generation_pb2.GenerateStreamRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        outbox: Outbox[tuple[int, Event]] = Outbox()
        calls: dict[int, Session] = {}
        half_closed = False

        def close_when_done() -> None:
            nonlocal half_closed
            half_closed = True
            if not calls:
                outbox.close()

        def begin(message: generation_pb2.GenerateCall) -> None:
            call_id = message.call_id
            if call_id in calls:
                raise InvalidRequest("call_id is that of a call under way", param="call_id")

            def emit(event: Event) -> None:
                outbox.put((call_id, event))
                if isinstance(event, (Finished, Failed)):
                    calls.pop(call_id, None)
                    if half_closed and not calls:
                        outbox.close()

            try:
                request = generation_from_proto(message.request)
            except InvalidRequest as error:
                self._sessions.refused(Ticket(message.request.ticket))
                outbox.put((call_id, Failed(error)))
                return
            session = self._sessions.begin(request, emit)
            if session is not None:
                calls[call_id] = session

        def deliver(message: generation_pb2.GenerateStreamRequest) -> None:
            for call in message.calls:
                begin(call)
            for call_id in message.cancelled_call_ids:
                session = calls.pop(call_id, None)
                if session is not None:
                    session.stop(Cancelled("The caller went away."))

        try:
            await serve_mux(context, deliver, outbox, _batch, close_when_done)
        except InvalidRequest as error:
            await abort(context, error)
        finally:
            for session in [*calls.values()]:
                session.stop(Cancelled("The caller went away."))

    async def Abort(  # noqa: N802
        self, message: generation_pb2.AbortRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.AbortResponse:
        if not message.request_id:
            # Many requests may have come without an id, and their callers know nothing of one another.
            await abort(context, InvalidRequest("request_id is empty", param="request_id"))
        return generation_pb2.AbortResponse(found=self._sessions.abort(message.request_id))


def _batch(items: list[tuple[int, Event]]) -> generation_pb2.GenerateStreamResponse:
    return generation_pb2.GenerateStreamResponse(events=[call_event(call_id, event) for call_id, event in items])
