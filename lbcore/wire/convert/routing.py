"""Routing: the facts of a request, and where it should go."""

from __future__ import annotations

from lbcore.api.v1 import routing_pb2
from lbcore.errors import InvalidRequest
from lbcore.types import (
    Epoch,
    Route,
    RouteFacts,
    Target,
    Ticket,
    WorkerId,
)
from lbcore.wire.convert.numbers import measure, milliseconds, uint32


def facts_to_proto(
    facts: RouteFacts, abandoned: tuple[Ticket, ...] = (), timeout_s: float | None = None
) -> routing_pb2.RouteRequest:
    """A question as a message. Numbers too large for it become the largest: it is the engine that refuses them."""
    return routing_pb2.RouteRequest(
        request_id=facts.request_id,
        model=facts.model,
        prompt_byte_count=uint32(facts.prompt_bytes),
        prefix_hashes=facts.prefix_hashes,
        prefix_block_byte_count=facts.prefix_block_bytes,
        max_output_token_count=uint32(facts.max_output_tokens),
        priority=facts.priority,
        timeout_ms=milliseconds(timeout_s),
        session_id=facts.session_id,
        tried_worker_ids=facts.tried,
        abandoned_tickets=abandoned,
    )


def facts_from_proto(message: routing_pb2.RouteRequest) -> RouteFacts:
    """A question as a value.

    Raises:
        InvalidRequest: the model is missing.
    """
    if not message.model:
        raise InvalidRequest("model is empty", param="model")
    return RouteFacts(
        request_id=message.request_id,
        model=message.model,
        prompt_bytes=message.prompt_byte_count,
        prefix_hashes=tuple(message.prefix_hashes),
        prefix_block_bytes=message.prefix_block_byte_count,
        max_output_tokens=message.max_output_token_count,
        priority=message.priority,
        session_id=message.session_id,
        tried=frozenset(WorkerId(worker_id) for worker_id in message.tried_worker_ids),
    )


def _target_to_proto(target: Target) -> routing_pb2.WorkerTarget:
    return routing_pb2.WorkerTarget(worker_id=target.worker_id, epoch=target.epoch, address=target.address)


def _target_from_proto(message: routing_pb2.WorkerTarget) -> Target:
    return Target(WorkerId(message.worker_id), Epoch(message.epoch), message.address)


def route_to_proto(route: Route) -> routing_pb2.RouteResponse:
    return routing_pb2.RouteResponse(
        worker=_target_to_proto(route.target),
        ticket=route.ticket,
        fallbacks=[_target_to_proto(target) for target in route.fallbacks],
        predicted_ttft_ms=route.predicted_ttft_ms,
    )


def route_from_proto(message: routing_pb2.RouteResponse) -> Route:
    return Route(
        target=_target_from_proto(message.worker),
        ticket=Ticket(message.ticket),
        fallbacks=tuple(_target_from_proto(target) for target in message.fallbacks),
        predicted_ttft_ms=measure(message.predicted_ttft_ms),
    )
