"""HTTP in, HTTP out. Whatever can be computed without a socket lives elsewhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from uuid import uuid4

import structlog
from aiohttp import hdrs, web

from gateway import sse
from gateway.config import GatewayConfig
from gateway.errors import ErrorAnswer, method_not_allowed, openai_error
from gateway.fleet import Fleet
from gateway.metrics import GatewayMetrics, page_of_all
from gateway.pieces import in_pieces
from gateway.processes import Place
from gateway.render import EVENTS_AT_ONCE, answer_for, chunks_for, model_list, model_object
from gateway.schema import OpenAIRequest, parse
from lbcore.clock import Clock, unix_time_s
from lbcore.dispatch import Attempt, Dispatcher
from lbcore.errors import BodyTooLarge, Cancelled, InvalidRequest, LoadBalancerError, ModelNotFound, NotFound
from lbcore.generation import Delta, Dialect, Event, Finished, GenerationRequest
from lbcore.metrics import exposition
from lbcore.prefix import PREFIX_BLOCK_BYTES, block_hashes
from lbcore.types import RouteFacts, WorkerId

log = structlog.get_logger()

_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")

_SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx and its like collect an answer before passing it on unless told otherwise.
    "X-Accel-Buffering": "no",
}

Batches = AsyncIterator[list[Event]]


class Exchange:
    """One generation request, from arrival to end: what its log line and its metrics say."""

    __slots__ = ("arrived", "dialect", "error", "first_token", "model", "request_id", "usage", "workers")

    def __init__(self, request_id: str, dialect: Dialect, arrived: float) -> None:
        self.request_id = request_id
        self.dialect = dialect
        self.arrived = arrived
        self.model = ""
        self.first_token: float | None = None
        self.usage: Finished | None = None
        self.error: Exception | None = None
        #: Every worker that was tried; the last one answered, if any did.
        self.workers: list[WorkerId] = []

    def saw(self, events: list[Event], clock: Clock) -> None:
        """Notes the first token and the usage in a batch of events."""
        if self.first_token is None and any(isinstance(event, Delta) for event in events):
            self.first_token = clock.now()
        last = events[-1]
        if isinstance(last, Finished):
            self.usage = last


class Handlers:
    """The routes of the gateway. `draining` turns /ready to 503; what runs goes on."""

    def __init__(
        self,
        config: GatewayConfig,
        dispatcher: Dispatcher,
        fleet: Fleet,
        metrics: GatewayMetrics,
        clock: Clock,
        place: Place | None = None,
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._place = place
        self.draining = False
        self.in_flight = 0
        metrics.in_flight.set_function(lambda: self.in_flight)

    def application(self) -> web.Application:
        """The aiohttp application with all routes."""
        app = web.Application(client_max_size=self._config.max_body_bytes, middlewares=[_openai_errors])
        app.router.add_post("/v1/chat/completions", self._generation(Dialect.CHAT))
        app.router.add_post("/v1/completions", self._generation(Dialect.COMPLETION))
        app.router.add_post("/v1/embeddings", self._generation(Dialect.EMBEDDING))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._expose)
        return app

    def _generation(self, dialect: Dialect) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            exchange = Exchange(_request_id(request), dialect, self._clock.now())
            self.in_flight += 1
            try:
                return await self._generate(request, exchange)
            except (asyncio.CancelledError, ConnectionError):
                exchange.error = Cancelled("The client went away.")
                raise
            except Exception as error:
                exchange.error = error
                return _response(openai_error(error), exchange.request_id)
            finally:
                self.in_flight -= 1
                self._account(exchange)

        return handle

    async def _generate(self, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        parsed = parse(exchange.dialect, await self._body(request))
        exchange.model = parsed.model
        facts = RouteFacts(
            request_id=exchange.request_id,
            model=parsed.model,
            prompt_bytes=len(parsed.prompt),
            prefix_hashes=block_hashes(parsed.prefix),
            prefix_block_bytes=PREFIX_BLOCK_BYTES,
            max_output_tokens=parsed.max_output_tokens,
            session_id=_printable(request.headers.get("X-Session-ID", "")) or parsed.session_id,
        )
        generation = GenerationRequest(
            exchange.request_id, parsed.dialect, parsed.body, timeout_s=self._config.request_timeout_s
        )

        def observe(attempt: Attempt) -> None:
            if attempt.error is None:
                exchange.workers.append(attempt.worker_id)
            else:
                self._metrics.attempt_failed(attempt.error)
                log.info(
                    "attempt_failed",
                    request_id=exchange.request_id,
                    worker_id=attempt.worker_id,
                    reason=attempt.error.reason,
                    attempt=len(exchange.workers),
                )

        async with aclosing(self._dispatcher.run(facts, generation, observe)) as batches:
            if parsed.stream:
                return await self._stream(request, exchange, parsed, batches)
            return await self._whole(exchange, parsed, batches)

    async def _whole(self, exchange: Exchange, parsed: OpenAIRequest, batches: Batches) -> web.Response:
        answer = answer_for(parsed, exchange.request_id, int(unix_time_s()))
        body: bytes | list[bytes] | None = None
        async for events in batches:
            exchange.saw(events, self._clock)
            for start in range(0, len(events), EVENTS_AT_ONCE):
                if start:
                    await asyncio.sleep(0)
                body = answer.add(events[start : start + EVENTS_AT_ONCE])
        assert body is not None, "a run without an error ends with Finished"
        headers = {"Content-Type": "application/json", "X-Request-ID": exchange.request_id}
        return in_pieces(body, headers) if isinstance(body, list) else web.Response(body=body, headers=headers)

    async def _stream(
        self, request: web.Request, exchange: Exchange, parsed: OpenAIRequest, batches: Batches
    ) -> web.StreamResponse:
        chunks = chunks_for(parsed, exchange.request_id, int(unix_time_s()))
        # Until the first token an error can still be a status; from then on it is an event of the stream.
        response: web.StreamResponse | None = None
        try:
            async for events in batches:
                exchange.saw(events, self._clock)
                frames = chunks.render(events)
                if not frames:
                    continue
                if response is None:
                    response = web.StreamResponse(headers={**_SSE_HEADERS, "X-Request-ID": exchange.request_id})
                    await response.prepare(request)
                await response.write(frames)
        except ConnectionError:
            raise
        except Exception as error:
            if response is None:
                raise
            exchange.error = error
            await response.write(sse.error(error))
        assert response is not None, "a run without an error has at least one batch"
        await response.write_eof()
        return response

    async def _body(self, request: web.Request) -> bytes:
        limit = self._config.max_body_bytes
        too_large = BodyTooLarge(f"The request body is larger than {limit} bytes.", code="body_too_large")
        if (request.content_length or 0) > limit:
            raise too_large
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None
        except web.RequestPayloadError:
            raise InvalidRequest("The request body is not encoded as its headers say.") from None

    async def _models(self, request: web.Request) -> web.Response:
        return _json(model_list(self._fleet.models()))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        created_unix_s = self._fleet.models().get(name)
        if created_unix_s is None:
            raise ModelNotFound(f"The model `{name}` does not exist or you do not have access to it.")
        return _json(model_object(name, created_unix_s))

    async def _health(self, request: web.Request) -> web.Response:
        return _json(b'{"status":"ok"}')

    async def _ready(self, request: web.Request) -> web.Response:
        if self.draining:
            return _json(b'{"status":"draining"}', 503)
        if not self._fleet.ready:
            return _json(b'{"status":"no worker is ready"}', 503)
        return _json(b'{"status":"ok"}')

    async def _expose(self, request: web.Request) -> web.Response:
        if self._place is None:
            return exposition(self._metrics.registry, request.headers.get("Accept", ""))
        return await page_of_all(self._metrics.registry, self._place)

    def _account(self, exchange: Exchange) -> None:
        error = exchange.error
        if error is not None and not isinstance(error, LoadBalancerError):
            log.error("request_crashed", request_id=exchange.request_id, exc_info=error)
        now = self._clock.now()
        code = 200 if error is None else openai_error(error).status
        model = exchange.model if self._fleet.serves(exchange.model) else ""
        ttft_s = None if exchange.first_token is None else exchange.first_token - exchange.arrived
        self._metrics.answered(exchange.dialect.value, model, code, now - exchange.arrived, ttft_s, exchange.usage)
        usage = exchange.usage
        log.info(
            "request",
            request_id=exchange.request_id,
            route=exchange.dialect.value,
            model=exchange.model[:128],
            worker_id=exchange.workers[-1] if exchange.workers else None,
            attempts=len(exchange.workers),
            code=code,
            reason=error.reason if isinstance(error, LoadBalancerError) else None,
            duration_ms=round((now - exchange.arrived) * 1000, 3),
            ttft_ms=None if ttft_s is None else round(ttft_s * 1000, 3),
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
        )


@web.middleware
async def _openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Whatever goes wrong outside the generation routes, in OpenAI's shape."""
    try:
        return await handler(request)
    except LoadBalancerError as error:
        return _response(openai_error(error), _request_id(request))
    except web.HTTPMethodNotAllowed as error:
        return _response(method_not_allowed(error.method, tuple(sorted(error.allowed_methods))), _request_id(request))
    except web.HTTPNotFound:
        answer = openai_error(NotFound(f"Unknown request URL: {request.method} {request.path[:256]}."))
        return _response(answer, _request_id(request))
    except web.HTTPClientError as error:
        return _response(openai_error(InvalidRequest(error.reason)), _request_id(request))
    except ConnectionError:
        # The client went away in the middle of its answer; nobody is there to hear of it.
        raise
    except Exception as error:
        log.exception("request_crashed", path=request.path[:256])
        return _response(openai_error(error), _request_id(request))


def _request_id(request: web.Request) -> str:
    """The client's own X-Request-ID when it is short and printable, else a new one."""
    return _printable(request.headers.get("X-Request-ID", "")) or uuid4().hex


def _printable(given: str) -> str:
    """A header that may go into logs and onto the wire as it is; empty when it may not."""
    return given if _PRINTABLE.fullmatch(given) else ""


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, headers={hdrs.CONTENT_TYPE: "application/json"})


def _response(answer: ErrorAnswer, request_id: str) -> web.Response:
    return web.Response(status=answer.status, headers={**answer.headers, "X-Request-ID": request_id}, body=answer.body)
