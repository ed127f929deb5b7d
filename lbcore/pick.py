"""The decision: who serves this request. A pure function of request, snapshot, policy and chance."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lbcore.cost import first_token_ms
from lbcore.policies.base import Policy
from lbcore.types import Decision, Endpoint, PickRequest, RefusalReason, Refused, Routed, Snapshot

FALLBACK_COUNT = 3
"""Others named with a pick. Each is asked only if all before it failed; with one worker in ten down, three more leave a
request without any in one case of 10,000."""


def pick(request: PickRequest, snapshot: Snapshot, policy: Policy, rng: Random) -> Decision:
    """Filter, weigh, take one. `Routed.scores` are those of the pick and its fallbacks."""
    candidates: Sequence[Endpoint] = snapshot.endpoints
    if not candidates:
        return Refused(RefusalReason.MODEL_NOT_FOUND)
    agreement = snapshot.agreement
    for part in policy.filters:
        if part.keeps_all(request, agreement):
            continue
        candidates = part.keep(request, candidates, snapshot.taken_at)
        if not candidates:
            return Refused(part.refusal)
    costs = policy.cost.cost(request, candidates, snapshot)
    ranking = policy.picker.rank(costs, 1 + FALLBACK_COUNT, snapshot, rng)
    ranked = [candidates[index] for index in ranking]
    picked = ranked[0]
    return Routed(
        picked,
        tuple(ranked[1:]),
        first_token_ms(request, picked, snapshot.taken_at),
        tuple([(candidates[index].spec.worker_id, 0.0 - costs[index]) for index in ranking]),
    )
