"""How a decision came about, for people who ask. It decides nothing: it weighs again what was decided on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType

from lbcore.policies.base import Policy, Termed, part_name
from lbcore.types import Candidate, Decision, Endpoint, Explanation, PickRequest, Refused, Snapshot

_NO_TERMS: Mapping[str, float] = MappingProxyType({})

_OTHER_THAN_CHEAPEST = {
    "lottery": "drawn from {count}, the cheaper the likelier",
    "round_robin": "its turn among {count}",
    "two_choices": "the cheaper of two drawn from {count}",
}
"""What pickers do that do not take the cheapest of all."""


def explain(
    request: PickRequest,
    snapshot: Snapshot,
    policy: Policy,
    decision: Decision,
    waited_ms: float = 0.0,
    would_wait: bool = False,
) -> Explanation:
    """Of a decision that `pick` made of the first three.

    The request has waited so long in the scheduler for it; or it would wait now until the picked worker has room.
    """
    candidates = _candidates(request, snapshot, policy)
    if isinstance(decision, Refused):
        reason = _why_nobody(candidates)
    else:
        reason = _why(decision.endpoint, candidates, policy, request.prompt_tokens)
        if would_wait:
            reason = f"would wait for {decision.endpoint.worker_id}: {reason}"
    return Explanation(policy.name, request.prompt_tokens, waited_ms, reason, tuple(candidates))


def _candidates(request: PickRequest, snapshot: Snapshot, policy: Policy) -> list[Candidate]:
    left: Sequence[Endpoint] = snapshot.endpoints
    excluded: list[Candidate] = []
    for part in policy.filters:
        kept = part.keep(request, left, snapshot.taken_at)
        keeps = {endpoint.worker_id for endpoint in kept}
        excluded += [
            Candidate(one.worker_id, cached_tokens=_cached(request, one), excluded_by=part_name(part))
            for one in left
            if one.worker_id not in keeps
        ]
        left = kept
    costs = policy.cost.cost(request, left, snapshot) if left else []
    terms: Sequence[Mapping[str, float]] = [_NO_TERMS] * len(left)
    if left and isinstance(policy.cost, Termed):
        terms = policy.cost.terms(request, left, snapshot)
    weighed = [
        Candidate(one.worker_id, cost, _cached(request, one), of_one)
        for one, cost, of_one in zip(left, costs, terms, strict=True)
    ]
    return sorted(weighed, key=attrgetter("cost", "worker_id")) + excluded


def _cached(request: PickRequest, endpoint: Endpoint) -> float:
    return request.hit_tokens.get(endpoint.worker_id, 0.0)


def _why(picked: Endpoint, candidates: Sequence[Candidate], policy: Policy, prompt_tokens: int) -> str:
    weighed = [one for one in candidates if not one.excluded_by]
    chosen = next(one for one in weighed if one.worker_id == picked.worker_id)
    parts = [_against_others(chosen, weighed, policy)]
    if chosen.cached_tokens >= 0.5:
        parts.append(f"it holds {chosen.cached_tokens:,.0f} of {prompt_tokens:,} prompt tokens")
    holder = max(candidates, key=attrgetter("cached_tokens"))
    if holder.cached_tokens > chosen.cached_tokens:
        but = f"but is left out by {holder.excluded_by}" if holder.excluded_by else "at " + _amount(holder, policy)
        parts.append(f"{holder.worker_id} holds {holder.cached_tokens:,.0f} of {prompt_tokens:,}, {but}")
    if len(weighed) < len(candidates):
        parts.append(_left_out(candidates))
    return "; ".join(parts)


def _against_others(chosen: Candidate, weighed: Sequence[Candidate], policy: Policy) -> str:
    count = len(weighed)
    if count == 1:
        return "the only one that can take it"
    drawn = _OTHER_THAN_CHEAPEST.get(part_name(policy.picker))
    if drawn is not None:
        return drawn.format(count=count)
    others = [one for one in weighed if one is not chosen]
    alike = sum(one.cost == chosen.cost for one in weighed)
    if alike > 1:
        return f"drawn from the {alike} cheapest of {count}, at {_amount(chosen, policy)} each"
    return (
        f"cheapest of {count}: {_amount(chosen, policy)} against {_amount(others[0], policy)} at {others[0].worker_id}"
    )


def _why_nobody(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "no worker serves the model"
    return f"nobody of {len(candidates)} can take it; {_left_out(candidates)}"


def _left_out(candidates: Sequence[Candidate]) -> str:
    counts = Counter(one.excluded_by for one in candidates if one.excluded_by)
    return "left out: " + ", ".join(f"{count} by {name}" for name, count in counts.items())


def _amount(candidate: Candidate, policy: Policy) -> str:
    number = f"{candidate.cost:,.1f}" if abs(candidate.cost) >= 10 else f"{candidate.cost:.3g}"
    unit = policy.cost.unit if isinstance(policy.cost, Termed) else ""
    return f"{number} {unit}" if unit else number
