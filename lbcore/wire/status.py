"""Errors to and from gRPC: the one place that maps the tree of `lbcore.errors` to status codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from lbcore import errors
from lbcore.api.v1 import failure_pb2

DOMAIN = "lbcore"
"""The `domain` of every google.rpc.ErrorInfo this project sends."""

_DETAILS_KEY = "grpc-status-details-bin"

MAX_TEXT_BYTES = 1024
"""The longest message, and the longest fact beside it, that ends a call.

Past 8 KiB of trailers gRPC drops them all, the reason too. A message counts up to four times (as it is, and with three
bytes for each that must be escaped), each fact once.
"""

MAX_RETRY_AFTER_S = 3600.0
"""Nobody is told to stay away longer, whatever a peer says."""

GRPC_STATUS: Mapping[type[errors.LoadBalancerError], grpc.StatusCode] = {
    errors.LoadBalancerError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ContextLengthExceeded: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BodyTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.RetryLater: grpc.StatusCode.UNAVAILABLE,
    errors.Saturated: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NoReadyWorker: grpc.StatusCode.UNAVAILABLE,
    errors.SchedulerLost: grpc.StatusCode.UNAVAILABLE,
    errors.WorkerUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.StreamInterrupted: grpc.StatusCode.ABORTED,
    errors.CannotContinue: grpc.StatusCode.FAILED_PRECONDITION,
    errors.EngineFailed: grpc.StatusCode.INTERNAL,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.LeaseLost: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NameTaken: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConfigError: grpc.StatusCode.INTERNAL,
}


def tree(root: type[errors.LoadBalancerError] = errors.LoadBalancerError) -> Iterator[type[errors.LoadBalancerError]]:
    """Every class of the tree, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


_BY_REASON: Mapping[str, type[errors.LoadBalancerError]] = {cls.reason: cls for cls in reversed([*tree()])}

# What a status without ErrorInfo means: it was made by gRPC itself or by a peer that is not ours.
_BY_CODE: Mapping[grpc.StatusCode, type[errors.LoadBalancerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.UNAVAILABLE: errors.WorkerUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
}

_NUMBERS: Mapping[grpc.StatusCode, int] = {code: code.value[0] for code in grpc.StatusCode}
_CODES: Mapping[int, grpc.StatusCode] = {number: code for code, number in _NUMBERS.items()}


def status_of(error: errors.LoadBalancerError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return GRPC_STATUS[type(error)]


def failure_from_error(error: errors.LoadBalancerError) -> failure_pb2.Failure:
    """An error as a message inside a batched stream."""
    return failure_pb2.Failure(
        status_code=_NUMBERS[status_of(error)],
        reason=error.reason,
        message=_sendable(error.message),
        metadata={key: _sendable(value) for key, value in error.metadata.items()},
    )


def error_from_failure(failure: failure_pb2.Failure) -> errors.LoadBalancerError:
    """The error a peer meant; an unknown reason falls back to its status code."""
    code = _CODES.get(failure.status_code, grpc.StatusCode.UNKNOWN)
    return _rebuild(failure.reason, code, failure.message, failure.metadata)


def error_from_rpc(rpc_error: grpc.RpcError) -> errors.LoadBalancerError:
    """The error behind a failed call of ours, from its ErrorInfo or else from its status code."""
    code = rpc_error.code() if isinstance(rpc_error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    text = (rpc_error.details() if isinstance(rpc_error, grpc.aio.AioRpcError) else None) or code.name
    if isinstance(rpc_error, grpc.aio.AioRpcError):
        for key, value in rpc_error.trailing_metadata() or ():
            if key == _DETAILS_KEY and isinstance(value, bytes):
                info = _error_info(value)
                if info is not None:
                    return _rebuild(info.reason, code, text, info.metadata)
    return _rebuild("", code, text, {})


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.LoadBalancerError) -> NoReturn:
    """Ends a call with the error's status and its google.rpc.ErrorInfo. Never returns."""
    code = status_of(error)
    message = _short(error.message)
    metadata = {key: _short(value) for key, value in error.metadata.items()}
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    status = status_pb2.Status(code=_NUMBERS[code], message=message, details=[detail])
    await context.abort(code, message, ((_DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort returned")


def _error_info(serialized: bytes) -> error_details_pb2.ErrorInfo | None:
    try:
        for detail in status_pb2.Status.FromString(serialized).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
                return info
    except DecodeError:
        pass
    return None


def _rebuild(reason: str, code: grpc.StatusCode, message: str, metadata: Mapping[str, str]) -> errors.LoadBalancerError:
    cls = _BY_REASON.get(reason) or _BY_CODE.get(code, errors.EngineFailed)
    if issubclass(cls, errors.InvalidRequest):
        return cls(message, param=metadata.get("param"), code=metadata.get("code"))
    if issubclass(cls, errors.RetryLater):
        return cls(message, retry_after_s=_seconds(metadata.get("retry_after_s")))
    return cls(message)


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 1.0)
    except ValueError:
        return 1.0
    # Written so that NaN, which compares with nothing, is no number here either.
    return min(seconds, MAX_RETRY_AFTER_S) if seconds >= 0 else 1.0


def _sendable(text: str) -> str:
    # Engines quote what models wrote, and half a surrogate pair must not make an error of the error.
    return text.encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= MAX_TEXT_BYTES:
        return data.decode()
    return data[: MAX_TEXT_BYTES - len("…".encode())].decode("utf-8", "ignore") + "…"
