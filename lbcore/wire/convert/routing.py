"""Routing: the facts of a request, and where it should go."""

from __future__ import annotations

from xxhash import xxh3_128_hexdigest

from lbcore.api.v1 import routing_pb2
from lbcore.errors import InvalidRequest
from lbcore.types import (
    Epoch,
    Role,
    Route,
    RouteFacts,
    Target,
    Ticket,
    WorkerId,
)
from lbcore.wire.convert.explanations import explanation_from_proto, explanation_to_proto
from lbcore.wire.convert.numbers import measure, milliseconds, uint32
from lbcore.wire.convert.workers import phase_from_proto, phase_to_proto

_NOBODY: frozenset[WorkerId] = frozenset()
_WHOLE = Role.MIXED

MAX_NAME_CHARS = 256
"""Longest session or tenant that is kept as it came."""


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
    if facts.phase is not _WHOLE:
        message.phase = phase_to_proto(facts.phase)
    if facts.explain:
        message.explain = True


def _short(name: str) -> str:
    """A name that is kept as long as its request, or longer: one without end by its hash."""
    return name if len(name) <= MAX_NAME_CHARS else xxh3_128_hexdigest(name.encode())


def facts_from_proto(message: routing_pb2.RouteRequest) -> RouteFacts:
    """A question as a value.

    Raises:
        InvalidRequest: the model is missing, or the phase is not known.
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
        _short(message.session_id),
        frozenset(map(WorkerId, tried)) if tried else _NOBODY,
        _short(message.tenant),
        message.ttft_slo_ms,
        message.tpot_slo_ms,
        phase_from_proto(message.phase),
        message.explain,
    )


def timeout_from_proto(message: routing_pb2.RouteRequest) -> float | None:
    """For how many seconds the caller will wait for a decision; None for as long as it takes."""
    timeout_ms = message.timeout_ms
    return timeout_ms / 1000 if timeout_ms else None


def _slo(slo_ms: float) -> int:
    """Whole milliseconds for the wire, where 0 means none: what is shorter becomes the shortest there is."""
    return milliseconds(slo_ms / 1000)


def target_to_proto(target: Target) -> routing_pb2.WorkerTarget:
    message = routing_pb2.WorkerTarget(worker_id=target.worker_id, epoch=target.epoch, address=target.address)
    if target.wants_prefix_hashes:
        message.wants_prefix_hashes = True
    return message


def _target_from_proto(message: routing_pb2.WorkerTarget) -> Target:
    return Target(WorkerId(message.worker_id), Epoch(message.epoch), message.address, message.wants_prefix_hashes)


def route_to_proto(route: Route) -> routing_pb2.RouteResponse:
    return routing_pb2.RouteResponse(
        worker=target_to_proto(route.target),
        ticket=route.ticket,
        fallbacks=[target_to_proto(target) for target in route.fallbacks],
        predicted_ttft_ms=route.predicted_ttft_ms,
        explanation=None if route.explanation is None else explanation_to_proto(route.explanation),
    )


def route_from_proto(message: routing_pb2.RouteResponse) -> Route:
    return Route(
        target=_target_from_proto(message.worker),
        ticket=Ticket(message.ticket),
        fallbacks=tuple(_target_from_proto(target) for target in message.fallbacks),
        predicted_ttft_ms=measure(message.predicted_ttft_ms),
        explanation=explanation_from_proto(message.explanation) if message.HasField("explanation") else None,
    )
