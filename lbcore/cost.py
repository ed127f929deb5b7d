"""What it costs to send a request to a worker: arithmetic in milliseconds, no memory, no choice.

    ttft_ms  = wait_ms + token_ms · n       when the worker would produce the request's first token
    delay_ms = ttft_ms + c · t · d          the same, and what the request does to those that decode there

    wait_ms  = a · B + p + s                the work in front, the step that runs, a sequence slot
    token_ms = a · (1 + θ · min(d, 64))     own prefill, slowed by what decodes beside it

    n   uncached prompt tokens of the request: its prompt tokens less those the worker is believed to hold
    a   milliseconds per prompt token of this worker, measured
    B   uncached prompt tokens in front of it: queued by the last report, and credit
    d   requests in flight at the worker, reported and credit
    t   milliseconds of one decoding step of this worker, measured
    p   t for the step that computes the prompt, and half of t when one is running already; 0 while t is unmeasured
    s   0 while d < S, the number of sequences the worker runs at once; else (d − S + 1) · L · t / S: S sequences of L
        output tokens, one for each step of t milliseconds, free a slot every L · t / S, and d − S + 1 must become free
    θ   0.05
    c   1.0 = β · L · δ: one more sequence makes each step of the others longer by δ = 1 % (tables of 70B models give
        0.35 ms on 30 ms), for L = 256 steps, and their waiting counts β = 0.4 of the newcomer's

θ and β come from a discrete-event simulation of eight workers with continuous batching and chunked prefill that
replayed public production traces: there θ raised the share of requests inside their latency target from 0.71 to 0.85.
All is a line in n, so the pool computes its numbers when an endpoint changes, and a pick only multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence

from lbcore.types import Capacity, Endpoint, LoadReport, PickRequest

DEFAULT_PREFILL_MS_PER_TOKEN = 0.1
"""Assumed while nobody has measured: 10,000 tokens/s, an 8B model on one current data-centre GPU."""

INTERFERENCE_PER_REQUEST = 0.05
"""θ: how much of its own time a prefill loses to each request that decodes beside it."""

INTERFERENCE_REQUEST_LIMIT = 64
"""Requests beyond which interference grows no more, lest crowded workers only decode and the others only prefill."""

EXPECTED_OUTPUT_TOKENS = 256
"""L: length of an answer, of the order of the means in published chat traces (200 to 400)."""

CROWDING_STEPS = 1.0
"""c: steps that one more request costs for each request that decodes beside it."""

DEFAULT_STEP_MS = 20.0
"""t while unmeasured: 50 tokens/s for each sequence."""


def first_token_line(
    load: LoadReport, credit_requests: int, credit_tokens: int, capacity: Capacity, prefill_ms_per_token: float
) -> tuple[float, float, float]:
    """`wait_ms`, `token_ms` and crowding (c · t · d) of a worker with this report, credit, capacity and speed."""
    requests = load.queued_requests + load.running_requests + credit_requests
    step_ms = load.step_time_ms if load.step_time_ms > 0 else DEFAULT_STEP_MS
    wait_ms = prefill_ms_per_token * (load.queued_prompt_tokens + credit_tokens)
    # A worker that has measured nothing yet gets its chance to: its steps are not held against it.
    wait_ms += load.step_time_ms * (1.5 if requests else 1.0)
    sequences = max(1, capacity.max_sequences)
    if requests >= sequences:
        wait_ms += (requests - sequences + 1) * EXPECTED_OUTPUT_TOKENS * step_ms / sequences
    slowdown = 1.0 + INTERFERENCE_PER_REQUEST * min(requests, INTERFERENCE_REQUEST_LIMIT)
    return wait_ms, prefill_ms_per_token * slowdown, CROWDING_STEPS * step_ms * requests


def first_token_ms(request: PickRequest, endpoint: Endpoint) -> float:
    """Predicted time to first token of `request` at `endpoint`, in milliseconds."""
    uncached_tokens = request.prompt_tokens - request.hit_tokens.get(endpoint.spec.worker_id, 0.0)
    return endpoint.wait_ms + endpoint.token_ms * uncached_tokens


def delays_ms(request: PickRequest, candidates: Sequence[Endpoint]) -> list[float]:
    """What `request` costs at each candidate, in milliseconds: its own time to first token, and the others' delay."""
    tokens = float(request.prompt_tokens)
    if not request.hit_tokens:
        return [candidate.delay_ms + candidate.token_ms * tokens for candidate in candidates]
    hit_tokens = request.hit_tokens.get
    return [
        candidate.delay_ms + candidate.token_ms * (tokens - hit_tokens(candidate.spec.worker_id, 0.0))
        for candidate in candidates
    ]
