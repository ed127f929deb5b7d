"""Every error of the tree survives the wire, inside a stream and as a status, and no peer can make one that hurts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from lbcore import errors
from lbcore.api.v1 import failure_pb2
from lbcore.wire.status import (
    DOMAIN,
    GRPC_STATUS,
    MAX_TEXT_BYTES,
    abort,
    error_from_failure,
    error_from_rpc,
    failure_from_error,
    status_of,
    tree,
)

TREE = [*tree()]
RAISED = [cls for cls in TREE if "reason" in cls.__dict__]


def examples() -> Iterator[errors.LoadBalancerError]:
    """One of each class that is raised, with every fact it can carry."""
    for cls in RAISED:
        if issubclass(cls, errors.InvalidRequest):
            yield cls("This will not do.", param="messages[0].role", code="invalid_value")
        elif issubclass(cls, errors.RetryLater):
            yield cls("Not now.", retry_after_s=2.5)
        else:
            yield cls("So it is.")


EXAMPLES = [*examples()]


def described(error: errors.LoadBalancerError) -> tuple[type, str, dict[str, str]]:
    return type(error), error.message, error.metadata


class Aborted(Exception):
    """Stands for the exception by which gRPC leaves a servicer."""


class FakeContext:
    """A servicer's context that remembers how the call was ended."""

    def __init__(self) -> None:
        self.error: grpc.aio.AioRpcError | None = None

    async def abort(self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        metadata = grpc.aio.Metadata(*trailing)
        self.error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)
        raise Aborted


async def over_rpc(error: errors.LoadBalancerError) -> errors.LoadBalancerError:
    """The error as a caller sees it whose call ended in it."""
    context: Any = FakeContext()
    with pytest.raises(Aborted):
        await abort(context, error)
    return error_from_rpc(context.error)


def rpc_error(
    code: grpc.StatusCode, *, details: str | None = "Said by gRPC.", serialized: bytes | None = None
) -> grpc.RpcError:
    trailing = () if serialized is None else (("grpc-status-details-bin", serialized),)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def status_with(info: error_details_pb2.ErrorInfo) -> bytes:
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(details=[detail]).SerializeToString()


def test_every_class_of_the_tree_has_a_status() -> None:
    assert [cls.__name__ for cls in TREE if cls not in GRPC_STATUS] == []


def test_no_two_errors_share_a_reason() -> None:
    reasons = [cls.reason for cls in RAISED]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_inside_a_stream_arrives_as_it_left(error: errors.LoadBalancerError) -> None:
    assert described(error_from_failure(failure_from_error(error))) == described(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
async def test_an_error_that_ends_a_call_arrives_as_it_left(error: errors.LoadBalancerError) -> None:
    assert described(await over_rpc(error)) == described(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_stream_and_a_call_tell_the_same_status_code(error: errors.LoadBalancerError) -> None:
    assert failure_from_error(error).status_code == status_of(error).value[0]


@pytest.mark.parametrize("text", ["ÄÖ€🙂", "a\nb\r\nc\0d", "100% %41"], ids=["unicode", "lines", "percent"])
async def test_any_text_arrives_as_it_left(text: str) -> None:
    error = errors.InvalidRequest(text, param=text, code=text)
    assert described(await over_rpc(error)) == described(error)
    assert described(error_from_failure(failure_from_error(error))) == described(error)


@pytest.mark.parametrize("char", ["x", "€"])
async def test_a_call_that_fails_with_a_long_text_keeps_its_reason_and_the_beginning(char: str) -> None:
    # gRPC gives up on a call whose trailers are longer than 8 KiB, and the reason with it.
    text = char * 100_000
    arrived = await over_rpc(errors.InvalidRequest(text, param=text))
    assert isinstance(arrived, errors.InvalidRequest)
    assert text.startswith(arrived.message[:-1])
    assert len(arrived.message.encode()) <= MAX_TEXT_BYTES
    assert len((arrived.param or "").encode()) <= MAX_TEXT_BYTES


async def test_a_text_that_is_no_unicode_fails_the_call_with_its_own_reason() -> None:
    error = errors.EngineFailed("half a pair: \ud83d")
    assert isinstance(await over_rpc(error), errors.EngineFailed)
    assert isinstance(error_from_failure(failure_from_error(error)), errors.EngineFailed)


def test_an_unknown_reason_falls_back_to_the_status_code() -> None:
    failure = failure_pb2.Failure(
        status_code=grpc.StatusCode.INVALID_ARGUMENT.value[0], reason="OF_NEXT_YEAR", metadata={"param": "n"}
    )
    error = error_from_failure(failure)
    assert isinstance(error, errors.InvalidRequest)
    assert error.param == "n"


@pytest.mark.parametrize("code", [*grpc.StatusCode], ids=lambda code: code.name)
def test_every_status_without_our_details_becomes_some_error_of_the_tree(code: grpc.StatusCode) -> None:
    assert type(error_from_rpc(rpc_error(code))) in GRPC_STATUS
    assert error_from_rpc(rpc_error(code, details=None)).message == code.name


def test_a_failure_that_is_no_grpc_call_is_the_engine_s() -> None:
    assert isinstance(error_from_rpc(grpc.RpcError()), errors.EngineFailed)


def test_details_of_another_domain_are_not_ours_to_read() -> None:
    info = error_details_pb2.ErrorInfo(reason="NAME_TAKEN", domain="example.com")
    error = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, serialized=status_with(info)))
    assert isinstance(error, errors.WorkerUnreachable)


def test_details_without_an_error_info_fall_back_to_the_status_code() -> None:
    other = any_pb2.Any()
    other.Pack(error_details_pb2.RequestInfo(request_id="r"))
    serialized = status_pb2.Status(details=[other]).SerializeToString()
    error = error_from_rpc(rpc_error(grpc.StatusCode.NOT_FOUND, serialized=serialized))
    assert isinstance(error, errors.NotFound)


@given(st.binary(max_size=64))
def test_details_that_are_garbage_fall_back_to_the_status_code(garbage: bytes) -> None:
    error = error_from_rpc(rpc_error(grpc.StatusCode.NOT_FOUND, serialized=garbage))
    assert isinstance(error, errors.NotFound)


@given(st.binary(min_size=1, max_size=64))
def test_an_error_info_that_is_garbage_falls_back_to_the_status_code(garbage: bytes) -> None:
    detail = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\x0a\xff" + garbage)
    serialized = status_pb2.Status(details=[detail]).SerializeToString()
    assert isinstance(error_from_rpc(rpc_error(grpc.StatusCode.NOT_FOUND, serialized=serialized)), errors.NotFound)


@pytest.mark.parametrize("text", ["nan", "-inf", "inf", "-1", "1e400", "soon", "", "1e300"])
def test_a_peer_cannot_ask_for_a_senseless_wait(text: str) -> None:
    info = error_details_pb2.ErrorInfo(reason="SATURATED", domain=DOMAIN, metadata={"retry_after_s": text})
    error = error_from_rpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, serialized=status_with(info)))
    assert isinstance(error, errors.Saturated)
    assert math.isfinite(error.retry_after_s)
    assert 0 <= error.retry_after_s <= 3600


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=20) | st.sampled_from([cls.reason for cls in RAISED]),
    st.text(max_size=20),
    st.dictionaries(st.sampled_from(["param", "code", "retry_after_s", "other"]), st.text(max_size=8)),
)
def test_no_failure_is_too_strange_to_read(code: int, reason: str, message: str, metadata: dict[str, str]) -> None:
    failure = failure_pb2.Failure(status_code=code, reason=reason, message=message, metadata=metadata)
    error = error_from_failure(failure)
    assert type(error) in GRPC_STATUS
    assert described(error_from_failure(failure_from_error(error))) == described(error)
