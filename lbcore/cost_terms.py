"""The default cost of a worker taken apart, for people who ask why: the terms of `lbcore.cost`, by their names.

Costs are picked by without these: a pick of `delays_ms` makes no term.
"""

from __future__ import annotations

from collections.abc import Sequence

from lbcore.adapters import Loading
from lbcore.cost import (
    CROWDING_WEIGHT,
    DECODING_WEIGHT,
    EXPECTED_OUTPUT_TOKENS,
    QUEUE_LIMIT,
    QUEUE_WEIGHT,
    STEP_SLOPE,
    burden,
    decoding_step_ms,
    own_ms,
)
from lbcore.types import Endpoint, PickRequest, Role, Snapshot

_LOADED = Loading(0.0, 0.0)


def terms_ms(request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> list[dict[str, float]]:
    """For each candidate the terms that `delays_ms` adds up, in milliseconds.

    wait          until the prefill in front of the request is done
    own           the prefill of its own
    loading       of its adapter, where it is not loaded
    behind        these two again for those that wait: q · min(Q, 1)
    interference  and for those that decode meanwhile, and those whose contexts lie here: θ · min(d, 64) · f + σ · H
    step          the decoding step that its first token comes from, and half of one that is under way
    decoding      γ · L · t
    crowding      β · L · δ · t · d
    balance       ρ · W
    slots, kv     until a sequence slot and KV blocks are free
    reloading     of the adapter that has to make room
    held          what waits in the scheduler for this worker and comes first
    """
    waiting = snapshot.waiting_requests / max(1, len(candidates))
    behind = QUEUE_WEIGHT * min(waiting, QUEUE_LIMIT)
    return [_terms(request, candidate, snapshot.taken_at, behind) for candidate in candidates]


def _terms(request: PickRequest, endpoint: Endpoint, now: float, behind: float) -> dict[str, float]:
    load, capacity, requests = endpoint.load, endpoint.spec.capacity, endpoint.requests
    worker_id = endpoint.spec.worker_id
    work = own_ms(request, endpoint)
    loading = request.loading.get(worker_id, _LOADED)
    step_ms = decoding_step_ms(load)
    answer_ms = EXPECTED_OUTPUT_TOKENS * step_ms
    sequences = max(1, capacity.max_sequences)
    # What was given lately is not told of an endpoint but in the sum.
    rested = burden(load, endpoint.credit_requests, endpoint.credit_tokens, capacity, 0.0)
    to_compute = request.prompt_tokens - request.hit_tokens.get(worker_id, 0.0)
    missing = (0.0 if request.phase is Role.DECODE else to_compute) - endpoint.kv_room_tokens
    return {
        "wait": endpoint.wait_ms(now),
        "own": work - loading.own_ms,
        "loading": loading.own_ms,
        "behind": work * behind,
        "interference": work * (endpoint.interference - 1.0 + endpoint.pause_per_ms * work),
        "step": load.step_time_ms * (1.5 if requests else 1.0),
        "decoding": DECODING_WEIGHT * EXPECTED_OUTPUT_TOKENS * load.step_time_ms,
        "crowding": CROWDING_WEIGHT * STEP_SLOPE * answer_ms * requests,
        "balance": endpoint.fixed_ms - rested.fixed_ms,
        "slots": max(0, requests - sequences + 1) * answer_ms / sequences,
        "kv": max(0.0, missing) * endpoint.kv_ms_per_token,
        "reloading": loading.again_ms,
        "held": request.held_ms.get(worker_id, 0.0),
    }
