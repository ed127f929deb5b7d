"""What went wrong, as OpenAI clients expect to hear it: the error tree to HTTP status, headers and error object."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite
from typing import NamedTuple

import orjson

from lbcore.errors import (
    BodyTooLarge,
    Cancelled,
    CannotContinue,
    ConfigError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    LeaseLost,
    LoadBalancerError,
    ModelNotFound,
    NameTaken,
    NoReadyWorker,
    NotFound,
    RateLimited,
    RetryLater,
    Saturated,
    SchedulerLost,
    StreamInterrupted,
    WorkerUnreachable,
)

GENERIC_MESSAGE = "The server had an error while processing your request."


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one class of errors looks from outside."""

    status: int
    type: str
    code: str | None
    """None where OpenAI gives none; an `InvalidRequest` brings its own."""
    param: str | None = None
    is_message_public: bool = True
    """False for errors that concern operators: clients read `GENERIC_MESSAGE`."""


INTERNAL = Outcome(500, "server_error", "internal_error", is_message_public=False)

# The client library chooses its exception by the status, and tries again by itself after 408, 409, 429 and 5xx.
# 429 is for limits of the caller's own: a fleet without room is no fault of whoever asks, hence 503.
# An engine's own failure is 500 rather than 502: it was tried elsewhere already, and proxies that repeat what looks
# like a broken gateway (502, 503, 504) should not repeat it. A stream lost half-way is worth repeating, hence 502.
OUTCOMES: dict[type[LoadBalancerError], Outcome] = {
    LoadBalancerError: INTERNAL,
    InvalidRequest: Outcome(400, "invalid_request_error", None),
    ContextLengthExceeded: Outcome(400, "invalid_request_error", "context_length_exceeded"),
    BodyTooLarge: Outcome(413, "invalid_request_error", "body_too_large"),
    ModelNotFound: Outcome(404, "invalid_request_error", "model_not_found", param="model"),
    NotFound: Outcome(404, "invalid_request_error", "not_found"),
    RetryLater: Outcome(503, "server_error", "unavailable"),
    Saturated: Outcome(503, "server_error", "saturated"),
    RateLimited: Outcome(429, "rate_limit_error", "rate_limited"),
    NoReadyWorker: Outcome(503, "server_error", "no_ready_worker"),
    SchedulerLost: Outcome(503, "server_error", "no_ready_worker"),
    WorkerUnreachable: Outcome(503, "server_error", "worker_unreachable"),
    StreamInterrupted: Outcome(502, "server_error", "stream_interrupted"),
    CannotContinue: Outcome(502, "server_error", "stream_interrupted"),
    EngineFailed: Outcome(500, "server_error", "engine_failed"),
    DeadlineExceeded: Outcome(504, "timeout_error", "deadline_exceeded"),
    Cancelled: Outcome(499, "cancelled_error", "cancelled"),
    LeaseLost: INTERNAL,
    NameTaken: INTERNAL,
    ConfigError: INTERNAL,
}


class ErrorAnswer(NamedTuple):
    """A whole HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def openai_error(error: BaseException) -> ErrorAnswer:
    """The answer to a request that failed with `error`; anything outside the tree is an internal error."""
    outcome = outcome_of(error)
    headers = {"Content-Type": "application/json"}
    if isinstance(error, RetryLater) and isfinite(error.retry_after_s):
        # The standard header has whole seconds only; OpenAI's clients read the finer one first.
        headers["Retry-After"] = str(max(1, ceil(error.retry_after_s)))
        headers["Retry-After-Ms"] = str(max(1, ceil(error.retry_after_s * 1000)))
    return ErrorAnswer(outcome.status, headers, error_body(error))


def error_body(error: BaseException) -> bytes:
    """OpenAI's error object for `error`, as one line of JSON."""
    outcome = outcome_of(error)
    message, param, code = GENERIC_MESSAGE, outcome.param, outcome.code
    if isinstance(error, LoadBalancerError) and outcome.is_message_public:
        message = error.message
    if isinstance(error, InvalidRequest):
        param, code = error.param or param, error.code or code
    return _object(message, outcome.type, param, code)


def outcome_of(error: BaseException) -> Outcome:
    """The row of the nearest class in the tree."""
    for cls in type(error).__mro__:
        outcome = OUTCOMES.get(cls)
        if outcome is not None:
            return outcome
    return INTERNAL


def method_not_allowed(method: str, allowed: tuple[str, ...]) -> ErrorAnswer:
    """405: the path exists, for other methods."""
    names = ", ".join(allowed)
    message = f"Not allowed to {method} here; allowed: {names}."
    headers = {"Content-Type": "application/json", "Allow": names}
    return ErrorAnswer(405, headers, _object(message, "invalid_request_error", None, "method_not_allowed"))


def _object(message: str, type: str, param: str | None, code: str | None) -> bytes:
    # Messages may come from engines: text that is not Unicode must not make an error of the error.
    message = message.encode("utf-8", "replace").decode()
    return orjson.dumps({"error": {"message": message, "type": type, "param": param, "code": code}})
