"""What it costs to send a request to a worker: arithmetic in milliseconds, no memory, no choice.

    cost  = wait + own · (1 + q · min(Q, 1) + θ · min(d, 64) · f + σ · H) + L · t · (γ + β · δ · d) + ρ · W + blocked

    wait     until the prefill in front of the request is done: the queue of the worker's last report, worked off since
             at its measured speed, credit, and what waits in the scheduler for this worker
    own      a · (n + α · (P² - k²) / 2): prefill of the request's n = P - k uncached tokens of P; each token attends to
             those before it, which costs a part α of a token's own price for each; and loading its adapter, where it
             is not loaded
    Q        requests that wait for their prefill, in engines and in the scheduler, for each worker that could take one
    d        requests in flight at the worker, reported and credit
    f        min(1, W / 120 s) + own / (L · t): which part of their time those that decode there stand still, for
             prompts given lately and for this one
    H        milliseconds of prefill that hits saved here lately and would have saved nowhere else, in each millisecond:
             an exponential mean over 300 s
    t        milliseconds of one decoding step of this worker, measured
    W        milliseconds of prefill given to this worker lately: an exponential sum over 120 s
    blocked  s + m + l, where s is the time until a sequence slot is free: (d - S + 1) · L · t / S when all S are taken;
             m the time until KV blocks are free for the prompt, at the rate at which the requests in flight leave them;
             and l loading again the adapter that has to make room for this one's
    a        milliseconds per prompt token of this worker, measured
    L        length of an answer in tokens

The first two terms are the request's own time to first token, and γ · L · t its own decoding. The others are what it
does to those that are there and those to come: each request that waits behind this one waits its prefill longer (q);
each that decodes beside it stands still meanwhile (θ) and has a longer step from then on (β · L · δ · t); each whose
context lies here and nowhere else waits meanwhile or computes it again elsewhere, and may find it displaced (σ); and
work is drawn a little to where less was (ρ).
So a prefix hit is worth more where queues are long, and a prefix that everybody holds cancels out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from lbcore.adapters import Loading
from lbcore.types import NO_HITS, Capacity, Endpoint, LoadReport, PickRequest, Role, Snapshot, Terms

DEFAULT_PREFILL_MS_PER_TOKEN = 0.1
"""Assumed while nobody has measured: 10,000 tokens/s, an 8B model on one current data-centre GPU."""

DEFAULT_ATTENTION_RATIO = 2e-5
"""α while unmeasured: attention takes 4 · hidden size · layers operations for each pair of tokens, all else 2 ·
parameters for each token; 1.9e-5 for Llama 70B, 3.3e-5 for 8B."""

QUEUE_WEIGHT = 1.0
"""q: how many requests of those that wait for each worker are delayed by one that comes before them. In simulation 2
costs 3 % of mean time to first token where system prompts are many, and gains nothing that shows elsewhere."""

QUEUE_LIMIT = 1.0
"""Waiting requests per worker beyond which a hit is worth no more. With 4, a crowd whose prompts all begin alike waits
for the one worker that holds the beginning, while computing it elsewhere would serve them all from there on."""

INTERFERENCE_PER_REQUEST = 0.1
"""θ · f: what a millisecond in which a decoding request stands still counts beside one of waiting for a first token. A
short pause is nothing to an answer of many seconds, and one more of many is worse than the first. With a constant in
place of f, short prompts gather at few workers, whose answers then are late (Azure's trace: goodput 0.95, not 0.99)."""

INTERFERENCE_REQUEST_LIMIT = 64
"""Requests beyond which interference grows no more, lest crowded workers only decode and the others only prefill."""

EXPECTED_OUTPUT_TOKENS = 256
"""L: length of an answer, of the order of the means in published chat traces (200 to 400)."""

STEP_SLOPE = 0.01
"""δ: how much one more sequence prolongs each decoding step; tables of 70B models give 0.35 ms on 30 ms."""

CROWDING_WEIGHT = 0.1
"""β: what a millisecond of a longer step counts beside one of waiting for a first token. In simulation 0.05 costs a
fifth of goodput where one prompt in twenty is very long."""

DECODING_WEIGHT = 0.1
"""γ: what a millisecond of the request's own decoding counts beside one of waiting for a first token. Where half of a
fleet is half as fast it raises goodput in simulation from 0.74 to 0.88 (unrelated prompts), and costs nothing
elsewhere."""

BALANCE_WEIGHT = 0.1
"""ρ: how strongly work given lately is held against a worker."""

BALANCE_TAU_S = 120.0
"""How long work given is remembered."""

SAVED_WEIGHT = 1.0
"""σ: which part of what its hits would save is lost while a worker computes something else. In simulation coding agents
wait 2,040 ms on average with it and 2,410 without (ten seeds each): what is new goes where nobody's context is. With a
half, in two seeds of four two contexts lay at one worker that do not fit there together, and displaced each other at
every turn (3,150 ms); twice as much costs a tenth. Where nothing is shared, or all hold the same, it is nothing."""

SAVED_TAU_S = 300.0
"""How long hits are remembered: of the order of the time that somebody who comes back is away. With 120 s agents wait
3 % longer (ten seeds), with 600 s 8 % (four)."""

DEFAULT_STEP_MS = 20.0
"""t while unmeasured: 50 tokens/s for each sequence."""

SHORTEST_STEP_MS = 0.01
"""What is measured below this is no step of any engine, and would make pauses count without bound."""


_TERMS = attrgetter("terms")


class Burden(NamedTuple):
    """The parts of a worker's cost that do not depend on the request."""

    interference: float
    """1 + θ · min(d, 64) · min(1, W / 120 s) + σ · H."""
    pause_per_ms: float
    """θ · min(d, 64) / (L · t): what interference grows by for each millisecond of prefill."""
    fixed_ms: float
    """All terms without wait and own."""
    kv_room_tokens: float
    """Tokens for which there are free KV blocks; infinite where nobody says."""
    kv_ms_per_token: float
    """How long it takes until room for one more is there, once it is used up."""


def prefill_ms(token_ms: float, attention_ratio: float, prompt_tokens: float, cached_tokens: float) -> float:
    """Computing a prompt of which so many tokens are cached, in milliseconds."""
    pairs = (prompt_tokens * prompt_tokens - cached_tokens * cached_tokens) * 0.5
    return token_ms * (prompt_tokens - cached_tokens + attention_ratio * pairs)


def queue_ms(load: LoadReport, token_ms: float, attention_ratio: float) -> float:
    """Computing what a report says is queued."""
    return token_ms * (load.queued_prompt_tokens + attention_ratio * load.queued_prompt_pairs)


def decoding_step_ms(load: LoadReport) -> float:
    """t of a worker with this report."""
    return max(SHORTEST_STEP_MS, load.step_time_ms) if load.step_time_ms > 0 else DEFAULT_STEP_MS


def burden(
    load: LoadReport,
    credit_requests: int,
    credit_tokens: int,
    capacity: Capacity,
    recent_ms: float,
    saved_ms: float = 0.0,
) -> Burden:
    """Of a worker with this report, credit, capacity, work given lately, and work that its cache saved lately."""
    requests = load.queued_requests + load.running_requests + credit_requests
    step_ms = decoding_step_ms(load)
    # A worker that has measured nothing yet gets its chance to: its steps are not held against it.
    fixed_ms = load.step_time_ms * (1.5 if requests else 1.0)
    fixed_ms += CROWDING_WEIGHT * EXPECTED_OUTPUT_TOKENS * STEP_SLOPE * step_ms * requests
    fixed_ms += BALANCE_WEIGHT * recent_ms
    fixed_ms += DECODING_WEIGHT * EXPECTED_OUTPUT_TOKENS * load.step_time_ms
    sequences = max(1, capacity.max_sequences)
    if requests >= sequences:
        fixed_ms += (requests - sequences + 1) * EXPECTED_OUTPUT_TOKENS * step_ms / sequences
    room, release_ms = float("inf"), 0.0
    tokens = load.tokens_in_flight + credit_tokens
    if capacity.kv_blocks and tokens:
        room = float((capacity.kv_blocks - load.kv_used_blocks) * capacity.kv_block_size - credit_tokens)
        release_ms = EXPECTED_OUTPUT_TOKENS * step_ms / tokens
    disturbed = INTERFERENCE_PER_REQUEST * min(requests, INTERFERENCE_REQUEST_LIMIT)
    interference = 1.0 + disturbed * min(1.0, recent_ms / (BALANCE_TAU_S * 1000))
    interference += SAVED_WEIGHT * saved_ms / (SAVED_TAU_S * 1000)
    return Burden(interference, disturbed / (EXPECTED_OUTPUT_TOKENS * step_ms), fixed_ms, room, release_ms)


def own_ms(request: PickRequest, endpoint: Endpoint) -> float:
    """The prefill of `request` alone at `endpoint`, and loading its adapter where it is not; of one that is to be
    decoded, whose prompt is computed elsewhere, loading alone."""
    worker_id = endpoint.spec.worker_id
    if request.phase is Role.DECODE:
        return request.loading[worker_id].own_ms if worker_id in request.loading else 0.0
    cached_tokens = request.hit_tokens.get(worker_id, 0.0)
    work_ms = prefill_ms(endpoint.token_ms, endpoint.attention_ratio, request.prompt_tokens, cached_tokens)
    loading = request.loading.get(worker_id)
    return work_ms if loading is None else work_ms + loading.own_ms


def saved_ms(request: PickRequest, endpoint: Endpoint) -> float:
    """The prefill that the cache of `endpoint` saves `request`, beyond what the next best would."""
    held = request.hit_tokens.get(endpoint.spec.worker_id, 0.0)
    if not held or request.phase is Role.DECODE:
        return 0.0
    others = [*request.hit_tokens.values()]
    others.remove(held)
    elsewhere = max(others, default=0.0)
    return prefill_ms(endpoint.token_ms, endpoint.attention_ratio, held, elsewhere) if held > elsewhere else 0.0


def first_token_ms(request: PickRequest, endpoint: Endpoint, now: float) -> float:
    """Predicted time to first token of `request` at `endpoint`, in milliseconds."""
    held_ms = request.held_ms.get(endpoint.spec.worker_id, 0.0)
    return endpoint.wait_ms(now) + held_ms + own_ms(request, endpoint) + endpoint.load.step_time_ms


def step_ms(endpoint: Endpoint) -> float:
    """Predicted time per token of one more request at `endpoint`, in milliseconds; 0 while nothing was measured."""
    # The measured step has all in it that the report knows of.
    return endpoint.load.step_time_ms * (1.0 + STEP_SLOPE * (endpoint.credit_requests + 1))


def delays_ms(request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> list[float]:
    """What `request` costs at each candidate, in milliseconds."""
    now_ms = snapshot.taken_at * 1000
    tokens = 0.0 if request.phase is Role.DECODE else float(request.prompt_tokens)
    waiting = snapshot.waiting_requests / max(1, len(candidates))
    behind = QUEUE_WEIGHT * min(waiting, QUEUE_LIMIT)
    # Who holds nothing has an expression of its own: it is the longer half of a great fleet, and the shorter one.
    get = request.hit_tokens.get if tokens else NO_HITS.get
    terms: Iterable[Terms] | None = snapshot.terms if candidates is snapshot.endpoints else None
    if terms is None:
        terms = map(_TERMS, candidates)
    costs = [
        fixed_ms
        + (own := (uncached := tokens - cached) * (token_ms + half_pair_ms * (tokens + cached)))
        * (interference + pause_per_ms * own + behind)
        + (free_ms - now_ms if free_ms > now_ms else 0.0)
        + ((uncached - kv_room) * kv_ms if uncached > kv_room else 0.0)
        if (cached := get(worker_id))
        else fixed_ms
        + (own := tokens * (token_ms + half_pair_ms * tokens)) * (interference + pause_per_ms * own + behind)
        + (free_ms - now_ms if free_ms > now_ms else 0.0)
        + ((tokens - kv_room) * kv_ms if tokens > kv_room else 0.0)
        for worker_id, token_ms, half_pair_ms, free_ms, interference, pause_per_ms, fixed_ms, kv_room, kv_ms in terms
    ]
    if loading := request.loading:
        costs = [
            cost + _loading_ms(request, candidate, load, behind)
            if (load := loading.get(candidate.spec.worker_id))
            else cost
            for cost, candidate in zip(costs, candidates, strict=True)
        ]
    if held_ms := request.held_ms:
        costs = [
            cost + held_ms.get(candidate.spec.worker_id, 0.0) for cost, candidate in zip(costs, candidates, strict=True)
        ]
    return costs


def _loading_ms(request: PickRequest, endpoint: Endpoint, loading: Loading, behind: float) -> float:
    """What loading an adapter adds to the cost: it is work of the request's own, and of another to come."""
    work_ms = own_ms(request, endpoint)
    prompt_ms = work_ms - loading.own_ms
    pauses = endpoint.pause_per_ms * (work_ms**2 - prompt_ms**2)
    return loading.own_ms * (endpoint.interference + behind) + pauses + loading.again_ms
