"""One generation request, from its body to the last byte of its answer.

It takes part in the event loop's turns by callbacks alone: the client's bytes, the scheduler's answer and the worker's
events each carry it on in the turn in which they arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from gateway import sse
from gateway.config import GatewayConfig
from gateway.decision import HEADER, decision_header
from gateway.errors import openai_error
from gateway.fleet import Fleet
from gateway.metrics import GatewayMetrics
from gateway.render import EVENTS_AT_ONCE, Answer, Chunks, answer_for, chunks_for
from gateway.reply import HIGH_WATER_BYTES, JSON, LAST_PIECE, Heads, Peer, piece
from gateway.schema import OpenAIRequest, parse
from gateway.terms import Terms
from gateway.vectors import Vectors
from lbcore.clock import Clock, unix_time_s
from lbcore.dispatch import Attempt, Dispatch, End
from lbcore.errors import Cancelled, LoadBalancerError
from lbcore.flow import Flow, Take
from lbcore.generation import Dialect, Event, Finished, GenerationRequest
from lbcore.log import info_often
from lbcore.prefix import block_hashes
from lbcore.types import RouteFacts, WorkerId

log = structlog.get_logger()


class Start(Protocol):
    """Has a request answered, as `lbcore.dispatch.Dispatcher.start` does."""

    def __call__(
        self,
        facts: RouteFacts,
        request: GenerationRequest,
        take: Take,
        done: Callable[[End], None],
        observe: Callable[[Attempt], None],
    ) -> Dispatch: ...


Trace = Callable[[RouteFacts, Finished, float], None]
"""Hears of each request that was answered to its end: what it was, its token counts, and when it came (in seconds since
1970)."""


class Exchanges:
    """What all requests of a process share, and how many there are."""

    def __init__(
        self,
        config: GatewayConfig,
        start: Start,
        fleet: Fleet,
        metrics: GatewayMetrics,
        clock: Clock,
        trace: Trace | None = None,
    ) -> None:
        self.config = config
        self.trace = trace
        self.start = start
        self.fleet = fleet
        self.metrics = metrics
        self.clock = clock
        self.heads = Heads()
        self.in_flight = 0
        metrics.in_flight.set_function(lambda: self.in_flight)


class Exchange:
    """One generation request. `over` is called once, when the last byte was written or the request was cancelled."""

    __slots__ = (
        "_answer",
        "_arrived",
        "_chunks",
        "_decision",
        "_dialect",
        "_dispatch",
        "_facts",
        "_first_token",
        "_has_begun",
        "_model",
        "_over",
        "_peer",
        "_sending",
        "_shared",
        "_usage",
        "_vectors",
        "_whole",
        "_workers",
        "request_id",
    )

    def __init__(
        self,
        shared: Exchanges,
        peer: Peer,
        dialect: Dialect,
        request_id: str,
        over: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._peer = peer
        self._dialect = dialect
        self._over = over
        self.request_id = request_id
        #: When its body was complete: what a client takes to send it is the client's own time.
        self._arrived: float | None = None
        self._model = ""
        self._first_token: float | None = None
        self._usage: Finished | None = None
        self._facts: RouteFacts | None = None
        #: The header line of an answer that is to say where it comes from, once that is decided.
        self._decision = b""
        #: Every worker that was tried; the last one answered, if any did.
        self._workers: list[WorkerId] = []
        self._dispatch: Dispatch | None = None
        self._sending: asyncio.Task[None] | None = None
        self._has_begun = False
        shared.in_flight += 1

    def begin(self, body: bytes, terms: Terms) -> None:
        """Takes the body, and answers it in its own time. Whatever is wrong with it is answered at once."""
        self._arrived = self._shared.clock.now()
        try:
            self._begin(parse(self._dialect, body), terms)
        except Exception as error:
            self._refuse(error)

    def refuse(self, error: Exception) -> None:
        """Answers with an error, in place of `begin`."""
        self._refuse(error)

    def cancel(self) -> None:
        """The client went away: stops everything."""
        if self._dispatch is not None:
            self._dispatch.cancel()
        if self._sending is not None:
            self._sending.cancel()
        self._close(Cancelled("The client went away."))

    def _begin(self, request: OpenAIRequest, terms: Terms) -> None:
        self._model = request.model
        now_unix_s = int(unix_time_s())
        take: Take
        if request.stream:
            self._chunks: Chunks = chunks_for(request, self.request_id, now_unix_s)
            take, done = self._stream, self._streamed
        else:
            answer = answer_for(request, self.request_id, now_unix_s)
            if type(answer) is Answer:
                self._answer: Answer = answer
                self._whole: bytes | None = None
                take, done = self._gather, self._gathered
            else:
                assert type(answer) is Vectors
                self._vectors: tuple[Vectors, list[Event]] = answer, []
                take, done = self._gather_vectors, self._gathered_vectors
        shared = self._shared
        facts = self._facts = RouteFacts(
            self.request_id,
            request.model,
            len(request.prompt),
            block_hashes(request.prefix),
            max_output_tokens=request.max_output_tokens,
            priority=terms.priority,
            session_id=terms.session_id or request.session_id,
            tenant=terms.tenant,
            ttft_slo_ms=terms.ttft_slo_ms,
            tpot_slo_ms=terms.tpot_slo_ms,
            explain=terms.explain and shared.config.debug_headers,
        )
        timeout_s = shared.config.request_timeout_s
        if terms.timeout_s is not None and terms.timeout_s < timeout_s:
            timeout_s = terms.timeout_s
        may_continue = shared.config.continuation and terms.may_continue and request.may_continue
        generation = GenerationRequest(
            self.request_id,
            request.dialect,
            request.body,
            timeout_s=timeout_s,
            priority=terms.priority,
            # What becomes of a tool call is not in its tokens alone, but in what the engine has made of them so far.
            wants_token_ids=may_continue and not request.has_tools,
            is_whole=not request.stream,
            may_continue=may_continue,
        )
        self._dispatch = shared.start(facts, generation, take, done, self._tried)

    def _tried(self, attempt: Attempt) -> None:
        error = attempt.error
        if error is None:
            self._workers.append(attempt.worker_id)
            if attempt.continues:
                self._shared.metrics.continued.inc()
            if self._facts is not None and self._facts.explain and attempt.route is not None:
                self._decision = f"{HEADER}: {decision_header(attempt.route)}\r\n".encode("ascii")
            return
        self._shared.metrics.attempt_failed(error)
        log.info(
            "attempt_failed",
            request_id=self.request_id,
            worker_id=attempt.worker_id,
            reason=error.reason,
            attempt=len(self._workers),
        )

    def _gather(self, events: list[Event], flow: Flow) -> None:
        if self._first_token is None:
            dispatch = self._dispatch
            at = None if dispatch is None else dispatch.first_token_at
            self._first_token = self._shared.clock.now() if at is None else at
        self._whole = self._answer.add(events)

    def _gathered(self, end: End) -> None:
        self._dispatch = None
        if not isinstance(end, Finished):
            self._refuse(end)
            return
        self._usage = end
        body = self._whole
        assert body is not None, "a run without an error ends with Finished"
        peer = self._peer
        head = self._shared.heads.whole(peer, 200, JSON, self.request_id, len(body), self._decision)
        if not peer.transport.is_closing():
            peer.transport.write(head + body)
        self._close(None)

    def _gather_vectors(self, events: list[Event], flow: Flow) -> None:
        self._vectors[1].extend(events)

    def _gathered_vectors(self, end: End) -> None:
        self._dispatch = None
        if not isinstance(end, Finished):
            self._refuse(end)
            return
        self._usage = end
        self._sending = asyncio.get_running_loop().create_task(self._send_vectors())

    async def _send_vectors(self) -> None:
        """Renders and sends in pieces, between which other requests get a turn."""
        vectors, events = self._vectors
        try:
            body: list[bytes] | None = None
            for start in range(0, len(events), EVENTS_AT_ONCE):
                await asyncio.sleep(0)
                body = vectors.add(events[start : start + EVENTS_AT_ONCE])
            assert body is not None, "a run without an error ends with Finished"
            length = sum(map(len, body))
            head = self._shared.heads.whole(self._peer, 200, JSON, self.request_id, length, self._decision)
        except Exception as error:
            self._refuse(error)
            return
        try:
            self._peer.transport.write(head)
            await self._write_in_turns(body)
        except Exception as error:
            # Part of the answer is sent, and only the connection's end can say that the rest will not come.
            self._peer.keeps_alive = False
            self._close(error)
            return
        self._close(None)

    async def _write_in_turns(self, parts: list[bytes]) -> None:
        peer, transport = self._peer, self._peer.transport
        for part in parts:
            transport.write(part)
            if transport.get_write_buffer_size() > HIGH_WATER_BYTES:
                drained = asyncio.Event()
                peer.when_drained(drained.set)
                await drained.wait()
            else:
                await asyncio.sleep(0)

    def _stream(self, events: list[Event], flow: Flow) -> None:
        frames = self._chunks.render(events)
        if not frames:
            return
        peer = self._peer
        transport = peer.transport
        if peer.is_http_1_1:
            frames = piece(frames) + LAST_PIECE if self._chunks.is_over else piece(frames)
        if not self._has_begun:
            self._has_begun = True
            if not peer.is_http_1_1:
                peer.keeps_alive = False
            self._first_token = self._shared.clock.now()
            frames = self._shared.heads.stream(peer, self.request_id, self._decision) + frames
        if transport.is_closing():
            # The client is gone, and the request about to be cancelled.
            return
        transport.write(frames)
        if transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            flow.pause()
            peer.when_drained(flow.resume)

    def _streamed(self, end: End) -> None:
        self._dispatch = None
        if isinstance(end, Finished):
            self._usage = end
            self._close(None)
        elif not self._has_begun:
            # Until the first token an error can still be a status; from then on it is an event of the stream.
            self._refuse(end)
        else:
            if not self._chunks.is_over and not self._peer.transport.is_closing():
                frames = sse.error(end)
                self._peer.transport.write(piece(frames) + LAST_PIECE if self._peer.is_http_1_1 else frames)
            self._close(end)

    def _refuse(self, error: Exception) -> None:
        answer = openai_error(error)
        peer = self._peer
        heads, length = self._shared.heads, len(answer.body)
        head = heads.whole(peer, answer.status, answer.headers, self.request_id, length, self._decision)
        if not peer.transport.is_closing():
            peer.transport.write(head + answer.body)
        self._close(error)

    def _close(self, error: Exception | None) -> None:
        shared = self._shared
        shared.in_flight -= 1
        if error is not None and not isinstance(error, LoadBalancerError):
            log.error("request_crashed", request_id=self.request_id, exc_info=error)
        self._account(error)
        self._over()

    def _account(self, error: Exception | None) -> None:
        shared = self._shared
        now, arrived = shared.clock.now(), self._arrived
        # Of a request that never was complete there is no duration.
        duration_s = None if arrived is None else now - arrived
        code = 200 if error is None else openai_error(error).status
        model = self._model if shared.fleet.serves(self._model) else ""
        ttft_s = None if self._first_token is None or arrived is None else self._first_token - arrived
        usage = self._usage
        if shared.trace is not None and usage is not None and self._facts is not None and duration_s is not None:
            shared.trace(self._facts, usage, unix_time_s() - duration_s)
        shared.metrics.answered(self._dialect.value, model, code, duration_s, ttft_s, usage)
        info_often(
            "request",
            {
                "request_id": self.request_id,
                "route": self._dialect.value,
                "model": self._model[:128],
                "worker_id": self._workers[-1] if self._workers else None,
                "attempts": len(self._workers),
                "code": code,
                "reason": error.reason if isinstance(error, LoadBalancerError) else None,
                "duration_ms": None if duration_s is None else round(duration_s * 1000, 3),
                "ttft_ms": None if ttft_s is None else round(ttft_s * 1000, 3),
                "prompt_tokens": usage.prompt_tokens if usage else None,
                "cached_tokens": usage.cached_tokens if usage else None,
                "output_tokens": usage.output_tokens if usage else None,
            },
        )
