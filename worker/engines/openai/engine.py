"""The engine that is one or several OpenAI-compatible servers somewhere else.

Requests wait here while the servers have as many as they generate at once, so that one that waits can be stopped at
once and the numbers of queued and running requests are true.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import aiohttp
import structlog

from lbcore.clock import Clock
from lbcore.errors import (
    Cancelled,
    ConfigError,
    InvalidRequest,
    LoadBalancerError,
    WorkerUnreachable,
)
from lbcore.generation import Failed, GenerationRequest
from lbcore.types import Capacity
from worker.engine import Emit, EngineInfo, EngineLoad
from worker.engines.begun import refusal
from worker.engines.ends import closed, surprised
from worker.engines.openai.body import read_body
from worker.engines.openai.call import Call
from worker.engines.openai.continuation import refuse_to_continue
from worker.engines.openai.errors import BadAnswer, BadEnd, stalled, timed_out, unreachable
from worker.engines.openai.load import total_load
from worker.engines.openai.options import UpstreamOptions, addresses
from worker.engines.openai.session import open_session
from worker.engines.openai.turns import Turns
from worker.engines.openai.upstream import Upstream

__all__ = ["OpenAIEngine", "UpstreamOptions"]

log = structlog.get_logger()


class OpenAIEngine:
    """Each request goes to the ready server with the least to do; the first in the queue is not overtaken."""

    def __init__(self, model: str, options: UpstreamOptions, clock: Clock, rng: Random) -> None:
        self._model = model
        self._options = options
        self._clock = clock
        self._rng = rng
        self._session: aiohttp.ClientSession | None = None
        self._upstreams: list[Upstream] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[str, Call] = {}
        self._turns: Turns[Call] = Turns()
        self._sent: set[Call] = set()
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._closed = False
        self._bad_ends: Counter[BadEnd] = Counter()

    async def start(self) -> EngineInfo:
        options = self._options
        found = addresses(options)
        self._session = open_session(options.upstream_api_key)
        self._upstreams = [
            Upstream(address, self._model, options, self._session, self._clock, self._rng, self._news)
            for address in found
        ]
        for upstream in self._upstreams:
            self._look_after(upstream.run())
        await self._until_one_answers()
        self._look_after(self._watch_silence())
        ready = [upstream for upstream in self._upstreams if upstream.is_ready]
        # Those that do not answer yet are taken for servers like the others.
        sequences = sum(upstream.sequences for upstream in ready) * len(found) // len(ready)
        blocks = sum(upstream.page.kv_blocks for upstream in ready) * len(found) // len(ready)
        sizes = {upstream.page.kv_block_size for upstream in ready}
        return EngineInfo(
            context_length=min(upstream.facts.context_length for upstream in ready),
            # Blocks of different sizes cannot be added up.
            capacity=Capacity(sequences, 0, blocks, sizes.pop()) if len(sizes) == 1 else Capacity(sequences),
            adapters=tuple(dict.fromkeys(name for upstream in ready for name in upstream.facts.adapters)),
            continues=all(upstream.facts.kind.goes_on is not None for upstream in ready),
        )

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        try:
            self._accept(request, emit)
        except LoadBalancerError as error:
            asyncio.get_running_loop().call_soon(emit, Failed(refusal(error, request.continuation)))
        except Exception as error:
            asyncio.get_running_loop().call_soon(emit, Failed(surprised(error)))

    def abort(self, request_id: str) -> None:
        call = self._calls.get(request_id)
        if call is not None:
            self._stop(call, Cancelled("The request was aborted."))

    def load(self) -> EngineLoad:
        return total_load(self._upstreams, self._bad_ends)

    async def failed(self) -> str:
        # A server that is gone may come back at any time.
        await asyncio.Event().wait()
        return ""

    async def close(self) -> None:
        self._closed = True
        for call in [*self._calls.values()]:
            self._stop(call, closed(call.begun))
        # What was left to the event loop comes out, then what has to close its connection.
        await asyncio.sleep(0)
        while self._sent:
            self._idle.clear()
            await self._idle.wait()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _accept(self, request: GenerationRequest, emit: Emit) -> None:
        if self._closed or self._session is None:
            raise WorkerUnreachable("The engine is closed.")
        running = self._calls.get(request.request_id)
        if running is not None and not running.ended:
            raise InvalidRequest("A request with this id is running.")
        ask = read_body(request)
        if request.continuation is not None:
            refuse_to_continue(ask, request.continuation)
        call = Call(request, ask, emit, self._turns.draw(request.priority))
        self._calls[request.request_id] = call
        self._turns.join(call.turn, call)
        self._admit()

    def _admit(self) -> None:
        """Sends requests while the first in the queue finds a server with room."""
        while (call := self._turns.first()) is not None and not self._closed:
            usable = [upstream for upstream in self._upstreams if upstream.is_ready and upstream not in call.tried]
            roomy = [upstream for upstream in usable if upstream.has_room(call.ask.choices)]
            if usable and not roomy and not call.tried:
                # One that was refused somewhere already must not hold up those who would be taken there: it ends, and
                # the gateway knows other workers.
                return
            self._turns.leave(call.turn)
            if roomy:
                self._send(call, min(roomy, key=lambda upstream: (upstream.load, self._rng.random())))
            else:
                if call.last is None:
                    call.last = unreachable()
                    self._bad_ends[call.last.how] += 1
                asyncio.get_running_loop().call_soon(self._end, call, call.last.error)

    def _send(self, call: Call, upstream: Upstream) -> None:
        assert self._session is not None
        attempt = call.attempt(upstream, self._model, self._session, self._clock, self._heard)
        try:
            call.task = asyncio.create_task(attempt)
        except Exception as error:
            attempt.close()
            asyncio.get_running_loop().call_soon(self._end, call, surprised(error))
            return
        now = self._clock.now()
        call.upstream, call.has_token, call.heard_at = upstream, False, now
        upstream.crowd.change(call.ask.choices, now)
        upstream.waiting_for_token += call.ask.choices
        upstream.meter.sent(call, now)
        self._sent.add(call)
        call.task.add_done_callback(lambda task: self._over(call, upstream, task))

    def _heard(self, call: Call) -> None:
        """A piece of an answer came."""
        answer, upstream = call.answer, call.upstream
        assert answer is not None
        assert upstream is not None
        if answer.tokens and not call.has_token:
            call.has_token = True
            upstream.waiting_for_token -= call.ask.choices
        has_queue = bool(upstream.page.waiting)
        upstream.meter.reached(call, answer.tokens, answer.choices, call.heard_at, has_queue=has_queue)

    def _over(self, call: Call, upstream: Upstream, task: asyncio.Task[None]) -> None:
        """An attempt is over, and its connection closed or free."""
        now = self._clock.now()
        computed = 0
        if call.answer is not None:
            upstream.answers.discard(call.answer)
            if call.ended:
                computed = call.answer.prompt_tokens - call.answer.cached_tokens
        upstream.meter.left(call, computed, now)
        upstream.crowd.change(-call.ask.choices, now)
        upstream.waiting_for_token -= 0 if call.has_token else call.ask.choices
        self._sent.discard(call)
        failure = None if task.cancelled() else task.exception()
        if not call.ended:
            self._settle(call, upstream, failure)
        elif self._calls.get(call.request_id) is call:
            del self._calls[call.request_id]
        self._admit()
        if not self._sent:
            self._idle.set()

    def _settle(self, call: Call, upstream: Upstream, failure: BaseException | None) -> None:
        """What becomes of a request whose attempt came to no end: it waits for the next, or ends."""
        error = call.error
        if isinstance(failure, BadAnswer):
            call.last = failure
        bad = call.last
        if error is None and bad is not None and failure in (bad, None):
            if not bad.try_again:
                self._bad_ends[bad.how] += 1
                if bad.how is not BadEnd.REFUSED:
                    log.warning(
                        "upstream_failed", upstream=str(upstream.address), how=bad.how, request_id=call.request_id
                    )
                call.tried.add(upstream)
            if bad.try_again or (bad.another_may_help and not call.begun):
                call.task = call.upstream = None
                self._turns.join(call.turn, call)
                return
            error = bad.error
        elif error is None:
            error = failure if isinstance(failure, LoadBalancerError) else surprised(failure)
        self._end(call, error)

    def _end(self, call: Call, error: LoadBalancerError) -> None:
        if self._calls.get(call.request_id) is call:
            del self._calls[call.request_id]
        if not call.ended:
            call.emit_end(refusal(error, call.continuation))

    def _stop(self, call: Call, error: LoadBalancerError) -> None:
        call.stop(error)
        if self._turns.leave(call.turn):
            del self._calls[call.request_id]
            asyncio.get_running_loop().call_soon(self._end, call, error)
            # Those behind it may need less room than it did.
            self._admit()

    def _news(self) -> None:
        """A server was asked, became ready or was lost."""
        self._changed.set()
        self._admit()

    def _look_after(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_one_answers(self) -> None:
        """Returns when one server is ready and every other was asked once. Raises ConfigError."""
        deadline = self._clock.now() + self._options.upstream_start_timeout_s
        said = False
        giving_up = asyncio.create_task(self._clock.sleep_until(deadline))
        try:
            while True:
                self._changed.clear()
                if all(upstream.was_asked for upstream in self._upstreams):
                    if any(upstream.is_ready for upstream in self._upstreams):
                        return
                    misfits = [upstream.misfit for upstream in self._upstreams]
                    if all(misfits):
                        raise next(misfit for misfit in misfits if misfit is not None)
                    if not said:
                        log.info("waiting_for_upstream", upstreams=[str(one.address) for one in self._upstreams])
                        said = True
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({changed, giving_up}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if giving_up.done():
                    for upstream in self._upstreams:
                        if upstream.misfit is not None:
                            raise upstream.misfit
                    raise ConfigError(
                        f"--upstream: no server answered within {self._options.upstream_start_timeout_s:g} s"
                    )
        finally:
            giving_up.cancel()

    async def _watch_silence(self) -> None:
        """Ends requests whose server says nothing any more. One look at all costs less than a timer for each token."""
        timeout_s = self._options.upstream_timeout_s
        while True:
            now = self._clock.now()
            for call in [*self._sent]:
                if now - call.heard_at >= timeout_s:
                    call.fail(stalled(timeout_s) if call.begun else timed_out(timeout_s))
            await self._clock.sleep_until(now + min(1.0, timeout_s / 4))
