"""Everything that can go wrong, as one small tree.

    LoadBalancerError
    ├── InvalidRequest              the client's fault; nothing reached an engine
    │   ├── ContextLengthExceeded
    │   └── BodyTooLarge
    ├── ModelNotFound
    ├── NotFound                    no such route, worker or request
    ├── RetryLater                  it passes; says when to try again
    │   ├── Saturated               ready workers, none with room
    │   ├── RateLimited             the caller has as many requests waiting as it may
    │   ├── NoReadyWorker
    │   │   └── SchedulerLost       nobody can say who is ready
    │   └── WorkerUnreachable       the request may be tried elsewhere
    ├── StreamInterrupted           lost after the first token
    ├── CannotContinue              the engine cannot go on with what another began
    ├── EngineFailed
    ├── DeadlineExceeded
    ├── Cancelled
    ├── LeaseLost                   the worker must register again
    ├── NameTaken                   another process registered under the worker's name
    └── ConfigError                 a process cannot start like this

`lbcore.wire.status` maps each to gRPC status, `gateway.errors` to OpenAI's error object; tests walk this tree so that
nothing is left out.
"""

from __future__ import annotations

from typing import ClassVar


class LoadBalancerError(Exception):
    """Base of all. `message` is one sentence for people, free of prompts, secrets and internal addresses."""

    reason: ClassVar[str] = "INTERNAL"
    """The machine-readable reason on the wire."""
    retry_elsewhere: ClassVar[bool] = False
    """Whether another worker might well do what this one could not, if no token was sent yet."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def metadata(self) -> dict[str, str]:
        """Facts that travel beside the message, as text."""
        return {}


class InvalidRequest(LoadBalancerError):
    """The request cannot be served as it is.

    `param` names the offending field in OpenAI's notation (`messages[0].role`), `code` is OpenAI's short code.
    """

    reason = "INVALID_REQUEST"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    @property
    def metadata(self) -> dict[str, str]:
        pairs = (("param", self.param), ("code", self.code))
        return {key: value for key, value in pairs if value is not None}


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit the model's context; the message says by how many tokens."""

    reason = "CONTEXT_LENGTH_EXCEEDED"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code or "context_length_exceeded")


class BodyTooLarge(InvalidRequest):
    """The body is over the limit."""

    reason = "BODY_TOO_LARGE"


class ModelNotFound(LoadBalancerError):
    """No worker, ready or not, serves this model."""

    reason = "MODEL_NOT_FOUND"


class NotFound(LoadBalancerError):
    """No such route, worker or request."""

    reason = "NOT_FOUND"


class RetryLater(LoadBalancerError):
    """An error that passes; `retry_after_s` is when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def metadata(self) -> dict[str, str]:
        return {"retry_after_s": f"{self.retry_after_s:g}"}


class Saturated(RetryLater):
    """Ready workers serve the model, but none has room."""

    reason = "SATURATED"
    retry_elsewhere = True


class RateLimited(RetryLater):
    """The caller is at a limit of its own; others may well be served."""

    reason = "RATE_LIMITED"


class NoReadyWorker(RetryLater):
    """Nobody can serve the model now."""

    reason = "NO_READY_WORKER"


class SchedulerLost(NoReadyWorker):
    """The scheduler cannot be reached, or says nothing."""

    reason = "SCHEDULER_LOST"


class WorkerUnreachable(RetryLater):
    """The worker could not be reached, or refused because it goes away, before the first token."""

    reason = "WORKER_UNREACHABLE"
    retry_elsewhere = True


class StreamInterrupted(LoadBalancerError):
    """The worker was lost after the first token."""

    reason = "STREAM_INTERRUPTED"


class CannotContinue(LoadBalancerError):
    """The engine cannot go on with an answer that another worker began; another engine might."""

    reason = "CANNOT_CONTINUE"
    retry_elsewhere = True


class EngineFailed(LoadBalancerError):
    """The engine answered with an error of its own."""

    reason = "ENGINE_FAILED"
    retry_elsewhere = True


class DeadlineExceeded(LoadBalancerError):
    """The request's time is over."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(LoadBalancerError):
    """The client went away, or somebody stopped the request."""

    reason = "CANCELLED"


class LeaseLost(LoadBalancerError):
    """The worker's lease is over; it must register again."""

    reason = "LEASE_LOST"


class NameTaken(LoadBalancerError):
    """Another process registered under this worker's name; the newer one stays."""

    reason = "NAME_TAKEN"


class ConfigError(LoadBalancerError):
    """A process cannot start like this; the message is one line that names the option."""

    reason = "CONFIG"
