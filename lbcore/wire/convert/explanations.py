"""How a decision came about."""

from __future__ import annotations

from math import isfinite

from lbcore.api.v1 import routing_pb2
from lbcore.types import Candidate, Explanation, WorkerId
from lbcore.wire.convert.numbers import measure, uint32


def explanation_to_proto(explanation: Explanation) -> routing_pb2.Explanation:
    return routing_pb2.Explanation(
        policy=explanation.policy,
        prompt_token_count=uint32(explanation.prompt_tokens),
        waited_ms=explanation.waited_ms,
        reason=explanation.reason,
        candidates=[
            routing_pb2.Candidate(
                worker_id=one.worker_id,
                cost=one.cost,
                cached_token_count=one.cached_tokens,
                terms=one.terms,
                excluded_by=one.excluded_by,
            )
            for one in explanation.candidates
        ],
    )


def explanation_from_proto(message: routing_pb2.Explanation) -> Explanation:
    return Explanation(
        message.policy,
        message.prompt_token_count,
        measure(message.waited_ms),
        message.reason,
        tuple(
            Candidate(
                WorkerId(one.worker_id),
                _finite(one.cost),
                measure(one.cached_token_count),
                {name: _finite(term) for name, term in one.terms.items()},
                one.excluded_by,
            )
            for one in message.candidates
        ),
    )


def _finite(number: float) -> float:
    return number if isfinite(number) else 0.0
