"""One request at one server, from the first byte to the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from io import BytesIO
from types import SimpleNamespace

import aiohttp

from lbcore.clock import Clock
from lbcore.errors import LoadBalancerError
from lbcore.generation import Dialect, Event, Failed, Finished, GenerationRequest
from worker.engine import Emit
from worker.engines.begun import is_empty
from worker.engines.openai.answer import Answer
from worker.engines.openai.body import Ask, write_body
from worker.engines.openai.continuation import Begun, body_changes, end_of
from worker.engines.openai.errors import BadAnswer, cut_off, from_status, unreachable, unreadable
from worker.engines.openai.sse import EventTooLong, SseParser
from worker.engines.openai.tokenizer import begin
from worker.engines.openai.turns import Turn
from worker.engines.openai.upstream import Upstream
from worker.engines.openai.vectors import Vectors, read_vectors

LARGE_BYTES = 2**20
MAX_ERROR_BYTES = 64 * 1024
MAX_WHOLE_BYTES = 64 * 2**20
"""An answer in one piece: 256 choices of 8,192 tokens are about 10 MB."""
MAX_VECTORS_BYTES = 256 * 2**20
"""2,048 vectors of 4,096 numbers are 45 MB in base64, and up to 180 MB as numbers."""
GOODBYE_S = 1.0
"""How long a server may take to end a stream that it has said is done; then the connection is not used again."""

_HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}


class Call:
    """A request on its way; one server after the other may be tried until one begins to answer."""

    def __init__(self, request: GenerationRequest, ask: Ask, emit: Emit, turn: Turn) -> None:
        self.request_id = request.request_id
        self.continuation = request.continuation
        self.ask = ask
        self.turn = turn
        self.tried: set[Upstream] = set()
        self.last: BadAnswer | None = None
        """How the last attempt ended, if it did not end well."""
        self.error: LoadBalancerError | None = None
        """Why it is to end, when that is not the server's doing."""
        self.ended = False
        """Whether the last event was emitted."""
        self.answer: Answer | Vectors | None = None
        self.upstream: Upstream | None = None
        self.heard_at = 0.0
        self.has_token = False
        self.task: asyncio.Task[None] | None = None
        self._emit = emit

    @property
    def begun(self) -> bool:
        """Whether anything of an answer was passed on."""
        return self.answer is not None and self.answer.started

    def emit(self, events: Iterable[Event]) -> None:
        """Passes events on, until the last, or until whoever is told stops the request."""
        for event in events:
            if self.error is not None or self.ended:
                return
            self.ended = isinstance(event, Finished)
            try:
                self._emit(event)
            except BaseException:
                # Nobody has heard of the end, so there must be another.
                self.ended = False
                raise

    def emit_end(self, error: LoadBalancerError) -> None:
        """Passes the bad end on; nothing comes after it."""
        self.ended = True
        self._emit(Failed(error))

    def stop(self, error: LoadBalancerError) -> None:
        """Ends the request in `error` as soon as its connection is closed. The first error counts."""
        if self.error is None and not self.ended:
            self.error = error
            if self.task is not None:
                self.task.cancel()

    def fail(self, bad: BadAnswer) -> None:
        """Ends what is going on at the server, in `bad`."""
        if self.last is None and not self.ended:
            self.last = bad
            if self.task is not None:
                self.task.cancel()

    async def attempt(
        self,
        upstream: Upstream,
        model: str,
        session: aiohttp.ClientSession,
        clock: Clock,
        heard: Callable[[Call], None],
    ) -> None:
        """Asks a server and emits what it answers; `heard` is called after every piece.

        Raises:
            BadAnswer: the server did not do what it should.
            InvalidRequest: it is of a kind that cannot do this.
            CannotContinue: it cannot go on with what another worker began.
        """
        self.last = None
        facts = upstream.facts
        begun: Begun | None = None
        if self.continuation is None or is_empty(self.continuation):
            sent = write_body(self.ask, model, facts)
        else:
            begun = await begin(self.ask, self.continuation, facts.kind, model, upstream.ask)
            end = end_of(self.ask, begun)
            if end:
                self.emit(end)
                return
            more = body_changes(self.ask, facts.kind, begun)
            sent = write_body(self.ask, model, facts, more, cuts=bool(begun.held))
        if self.ask.dialect is Dialect.EMBEDDING:
            self.answer = Vectors(self.ask)
        else:
            self.answer = Answer(self.ask, sent.stop, facts, facts.context_length, begun)
        upstream.answers.add(self.answer)
        self.heard_at = clock.now()
        trace = SimpleNamespace(reused=False)
        try:
            response = await session.post(
                upstream.address.url(sent.path),
                # Large bodies go out in pieces, so that they hold nobody up.
                data=BytesIO(sent.body) if len(sent.body) > LARGE_BYTES else sent.body,
                headers=_HEADERS,
                allow_redirects=False,
                trace_request_ctx=trace,
            )
        except (aiohttp.ClientConnectionError, TimeoutError, OSError) as error:
            if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
                upstream.lost(type(error).__name__)
            # A server closes connections that are idle, and cannot know that we are just about to use one.
            raise unreachable(try_again=trace.reused) from None
        except aiohttp.ClientError:
            raise unreadable("what is no HTTP") from None
        try:
            self.heard_at = clock.now()
            await self._read(response, clock, heard)
        except (aiohttp.ClientError, OSError):
            raise cut_off(self.begun) from None
        except EventTooLong:
            raise unreadable("an event without end") from None
        finally:
            # Goes back to the pool if all was read, and is closed otherwise, by which the server is told.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _read(self, response: aiohttp.ClientResponse, clock: Clock, heard: Callable[[Call], None]) -> None:
        assert self.answer is not None
        if response.status != 200:
            body = await self._all(response, MAX_ERROR_BYTES, clock)
            raise from_status(response.status, response.headers.get("Retry-After"), body, self.ask.prompt_field)
        if response.content_type == "text/html":
            raise unreadable("a web page")
        if isinstance(self.answer, Vectors):
            body = await self._all(response, MAX_VECTORS_BYTES, clock)
            if len(body) > MAX_VECTORS_BYTES:
                raise unreadable("more than vectors can be")
            if len(body) > LARGE_BYTES:
                # Others' tokens must not wait until millions of numbers are read.
                found = await asyncio.to_thread(read_vectors, body, self.ask)
            else:
                found = read_vectors(body, self.ask)
            self.emit(self.answer.take(found))
            heard(self)
            return
        if response.content_type == "application/json":
            self.emit(self.answer.whole(await self._all(response, MAX_WHOLE_BYTES, clock)))
            return
        parser = SseParser()
        async for piece in response.content.iter_any():
            self.heard_at = clock.now()
            for data in parser.feed(piece):
                self.emit(self.answer.take(data))
                if self.ended:
                    break
            heard(self)
            if self.ended:
                if self.answer.is_done:
                    await _goodbye(response)
                return
        self.emit(self.answer.end(parser.flush()))

    async def _all(self, response: aiohttp.ClientResponse, limit: int, clock: Clock) -> bytes:
        """The body, or its begin if it is longer than the limit."""
        body = bytearray()
        async for piece in response.content.iter_any():
            self.heard_at = clock.now()
            body += piece
            if len(body) > limit:
                break
        return bytes(body)


async def _goodbye(response: aiohttp.ClientResponse) -> None:
    """Reads the end of a stream that is done, so that its connection can be used again."""
    try:
        async with asyncio.timeout(GOODBYE_S):
            await response.content.readany()
    except (TimeoutError, aiohttp.ClientError, OSError):
        # The request is over and well; only the connection is not.
        pass
