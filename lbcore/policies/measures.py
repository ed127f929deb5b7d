"""What several parts read of the candidates: one number for each, in their order. Arithmetic without a choice.

The numbers do not depend on the order of the candidates. Where a property of `Endpoint` would do, its fields are added
up in place: a pick reads them of every endpoint, and the call would be most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, inf

from lbcore.types import Endpoint, PickRequest

SLOWEST, FASTEST = 1e-30, 1e30
"""Speeds that can be meant, in any unit: a load divided by one is finite, and so is the sum of all."""


def requests_in_flight(candidates: Sequence[Endpoint]) -> list[int]:
    """Requests queued, running and on the way."""
    return [
        candidate.load.queued_requests + candidate.load.running_requests + candidate.credit_requests
        for candidate in candidates
    ]


def waiting_requests(candidates: Sequence[Endpoint]) -> list[int]:
    """Requests queued and on the way: until a report says otherwise, what was sent waits."""
    return [candidate.load.queued_requests + candidate.credit_requests for candidate in candidates]


def tokens_in_front(candidates: Sequence[Endpoint]) -> list[int]:
    """Uncached prompt tokens to compute before those of a request that comes next."""
    return [candidate.load.queued_prompt_tokens + candidate.credit_tokens for candidate in candidates]


def uncached_tokens(request: PickRequest, candidates: Sequence[Endpoint]) -> list[float]:
    """Prompt tokens of the request that each would have to compute."""
    tokens = float(request.prompt_tokens)
    if not request.hit_tokens:
        return [tokens] * len(candidates)
    hit_tokens = request.hit_tokens.get
    return [tokens - hit_tokens(candidate.spec.worker_id, 0.0) for candidate in candidates]


def hit_ratios(request: PickRequest, candidates: Sequence[Endpoint]) -> list[float]:
    """The part of the prompt that each is believed to hold; 0 for everybody when the prompt is empty."""
    if not request.hit_tokens:
        return [0.0] * len(candidates)
    hit_tokens, tokens = request.hit_tokens.get, max(1, request.prompt_tokens)
    ratios = [hit_tokens(candidate.spec.worker_id, 0.0) / tokens for candidate in candidates]
    # The prompt's tokens are a whole number, and the hit may be half a token more.
    return [1.0 if ratio > 1.0 else ratio for ratio in ratios]


def first_token_ms(
    request: PickRequest, candidates: Sequence[Endpoint], uncached: Sequence[float], now: float
) -> list[float]:
    """Predicted milliseconds until each would have computed the prompt, of which it lacks so many tokens.

    The prefill is that of `lbcore.cost`, where the tokens before the n uncached ones of P count α · n · (P - n / 2).
    """
    prompt_tokens = request.prompt_tokens
    return [
        ((candidate.free_at - now) * 1000.0 if candidate.free_at > now else 0.0)
        + candidate.token_ms * tokens * (1.0 + candidate.attention_ratio * (prompt_tokens - tokens * 0.5))
        for candidate, tokens in zip(candidates, uncached, strict=True)
    ]


def declared_speeds(candidates: Sequence[Endpoint]) -> list[float]:
    """The speed of each: the mean of those declared where there is none, and 1 where nobody declares any.

    What is not positive, not finite or beyond any meaning is not declared.
    """
    speeds = [candidate.speed for candidate in candidates]
    known = [speed for speed in speeds if SLOWEST <= speed <= FASTEST]
    if len(known) == len(speeds):
        return speeds
    # An exact sum, because a plain one depends on the order.
    mean = fsum(known) / len(known) if known else 1.0
    return [speed if SLOWEST <= speed <= FASTEST else mean for speed in speeds]


def expected_latencies_ms(candidates: Sequence[Endpoint]) -> list[float]:
    """End-to-end latency of one more request: what each request in flight took lately, times those in flight then.

    A worker that nobody has seen answer counts as fast as the median of the others, so that it is tried. Where none has
    been seen, it is the requests in flight alone.
    """
    requests = requests_in_flight(candidates)
    observed = [candidate.latency_ms / max(1.0, candidate.latency_requests) for candidate in candidates]
    known = sorted([latency_ms for latency_ms in observed if 0.0 < latency_ms < inf])
    if not known:
        return [float(count) for count in requests]
    median = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    return [
        (latency_ms if 0.0 < latency_ms < inf else median) * (count + 1)
        for latency_ms, count in zip(observed, requests, strict=True)
    ]


def imbalanced(loads: Sequence[float], gap: float, ratio: float) -> bool:
    """Whether the greatest load is beyond the least both by more than `gap` and by more than `ratio` times."""
    least, most = min(loads, default=0.0), max(loads, default=0.0)
    return most - least > gap and most > ratio * least


def preferred_first(costs: Sequence[float], preferred: Sequence[bool]) -> list[float]:
    """The costs, with as much added to those of the others as puts them behind all that are preferred."""
    surcharge = max(costs, default=0.0) - min(costs, default=0.0) + 1.0
    return [cost if first else cost + surcharge for cost, first in zip(costs, preferred, strict=True)]
