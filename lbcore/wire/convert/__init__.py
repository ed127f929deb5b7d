"""Protobuf to domain values and back: the only reader of both. Never raises on what a peer sent but InvalidRequest."""

from lbcore.wire.convert.explanations import explanation_from_proto, explanation_to_proto
from lbcore.wire.convert.generation import (
    call_events,
    call_in_parts,
    event_from_proto,
    generation_from_proto,
    generation_to_proto,
    response_from_event,
    write_generation,
)
from lbcore.wire.convert.policies import policy_assignment_from_proto, policy_assignment_to_proto
from lbcore.wire.convert.routing import (
    facts_from_proto,
    route_from_proto,
    route_to_proto,
    target_to_proto,
    timeout_from_proto,
    write_facts,
)
from lbcore.wire.convert.workers import (
    load_from_proto,
    load_to_proto,
    prefixes_from_proto,
    prefixes_to_proto,
    spec_from_proto,
    spec_to_proto,
    worker_status_from_proto,
    worker_status_to_proto,
)

__all__ = [
    "call_events",
    "call_in_parts",
    "event_from_proto",
    "explanation_from_proto",
    "explanation_to_proto",
    "facts_from_proto",
    "generation_from_proto",
    "generation_to_proto",
    "load_from_proto",
    "load_to_proto",
    "policy_assignment_from_proto",
    "policy_assignment_to_proto",
    "prefixes_from_proto",
    "prefixes_to_proto",
    "response_from_event",
    "route_from_proto",
    "route_to_proto",
    "spec_from_proto",
    "spec_to_proto",
    "target_to_proto",
    "timeout_from_proto",
    "worker_status_from_proto",
    "worker_status_to_proto",
    "write_facts",
    "write_generation",
]
