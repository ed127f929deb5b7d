"""Which handler answers which request, and what is said when none does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from gateway.errors import ErrorAnswer, method_not_allowed, openai_error
from lbcore.errors import InvalidRequest, LoadBalancerError, NotFound

log = structlog.get_logger()

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Identify = Callable[[web.BaseRequest], str]
"""The id of a request."""


class Routes:
    """The table of routes."""

    def __init__(self, identify: Identify) -> None:
        self._identify = identify
        self._hot: dict[tuple[str, str], Handler] = {}
        self._exact: dict[str, dict[str, Handler]] = {}
        self._below: dict[str, dict[str, Handler]] = {}

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Has `handler` answer a path, or all paths below one that ends with a slash. GET answers HEAD as well."""
        table = self._below if path.endswith("/") else self._exact
        methods = table.setdefault(path, {})
        methods[method] = handler
        if method == "GET":
            methods["HEAD"] = handler
        if table is self._exact:
            self._hot[method, path] = handler

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Has a request answered; whatever goes wrong is said in OpenAI's shape."""
        handler = self._hot.get((request.method, request.raw_path))
        try:
            # Who asks on and on without reading would have all its answers stored here.
            await request.writer.drain()
            return await (handler or self._find(request))(request)
        except LoadBalancerError as error:
            return self._refuse(request, openai_error(error))
        except web.HTTPClientError as error:
            return self._refuse(request, openai_error(InvalidRequest(error.reason)))
        except _MethodNotAllowed as error:
            return self._refuse(request, method_not_allowed(request.method, error.allowed))
        except ConnectionError:
            # The client went away in the middle of its answer; nobody is there to hear of it.
            raise
        except Exception as error:
            log.exception("request_crashed", path=request.path[:256])
            return self._refuse(request, openai_error(error))

    def _find(self, request: web.BaseRequest) -> Handler:
        path = request.path
        methods = self._exact.get(path)
        if methods is None:
            methods = next(
                (below for start, below in self._below.items() if path.startswith(start) != (path == start)), None
            )
        if methods is None:
            raise NotFound(f"Unknown request URL: {request.method} {path[:256]}.")
        handler = methods.get(request.method)
        if handler is None:
            raise _MethodNotAllowed(tuple(sorted(methods)))
        return handler

    def _refuse(self, request: web.BaseRequest, answer: ErrorAnswer) -> web.Response:
        return error_response(answer, self._identify(request))


class _MethodNotAllowed(Exception):
    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__()
        self.allowed = allowed


def error_response(answer: ErrorAnswer, request_id: str) -> web.Response:
    """An error as aiohttp's response."""
    return web.Response(status=answer.status, headers={**answer.headers, "X-Request-ID": request_id}, body=answer.body)
