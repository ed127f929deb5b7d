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

_NOBODY: frozenset[WorkerId] = frozenset()


def write_facts(
    facts: RouteFacts, abandoned: tuple[Ticket, ...], timeout_s: float | None, message: routing_pb2.RouteRequest
) -> None:
    """Fills in a question. Numbers too large for it become the largest: it is the engine that refuses them."""
    message.request_id = facts.request_id
    message.model = facts.model
    message.prompt_byte_count = uint32(facts.prompt_bytes)
    if facts.prefix_hashes:
        message.prefix_hashes.extend(facts.prefix_hashes)
    message.prefix_block_byte_count = facts.prefix_block_bytes
    message.max_output_token_count = uint32(facts.max_output_tokens)
    message.timeout_ms = milliseconds(timeout_s)
    if facts.priority:
        message.priority = facts.priority
    if facts.session_id:
        message.session_id = facts.session_id
    if facts.tried:
        message.tried_worker_ids.extend(facts.tried)
    if abandoned:
        message.abandoned_tickets.extend(abandoned)
    if facts.tenant:
        message.tenant = facts.tenant
    if facts.ttft_slo_ms:
        message.ttft_slo_ms = _slo(facts.ttft_slo_ms)
    if facts.tpot_slo_ms:
        message.tpot_slo_ms = _slo(facts.tpot_slo_ms)


def facts_from_proto(message: routing_pb2.RouteRequest) -> RouteFacts:
    """A question as a value.

    Raises:
        InvalidRequest: the model is missing.
    """
    if not message.model:
        raise InvalidRequest("model is empty", param="model")
    tried = message.tried_worker_ids
    return RouteFacts(
        message.request_id,
        message.model,
        message.prompt_byte_count,
        tuple(message.prefix_hashes),
        message.prefix_block_byte_count,
        message.max_output_token_count,
        message.priority,
        message.session_id,
        frozenset(map(WorkerId, tried)) if tried else _NOBODY,
        message.tenant,
        message.ttft_slo_ms,
        message.tpot_slo_ms,
    )


def timeout_from_proto(message: routing_pb2.RouteRequest) -> float | None:
    """For how many seconds the caller will wait for a decision; None for as long as it takes."""
    timeout_ms = message.timeout_ms
    return timeout_ms / 1000 if timeout_ms else None


def _slo(slo_ms: float) -> int:
    """Whole milliseconds for the wire, where 0 means none: what is shorter becomes the shortest there is."""
    return milliseconds(slo_ms / 1000)


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
