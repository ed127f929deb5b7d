"""The nouns of routing: workers, leases, load reports, endpoints, requests, decisions. Values only, no behaviour.

What every request makes anew is a named tuple: a frozen dataclass writes each of its fields through a function call,
which for all of them together would be a tenth of what a route costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from types import MappingProxyType
from typing import NamedTuple, NewType

from lbcore.adapters import Loading

WorkerId = NewType("WorkerId", str)
"""The name under which operators know a worker; its advertised address unless it was given one."""

Epoch = NewType("Epoch", int)
"""A random 64-bit number drawn when a worker process starts."""

Ticket = NewType("Ticket", int)
"""The number of one dispatch, given by the scheduler; 0 stands for none."""

NO_TICKET = Ticket(0)

NO_LOADING: Mapping[WorkerId, Loading] = MappingProxyType({})
"""Nobody has to load anything."""

NO_HITS: Mapping[WorkerId, float] = MappingProxyType({})
"""Nobody holds anything of a prompt."""


class Role(StrEnum):
    """The phases of a request that a worker takes."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


TAKERS: Mapping[Role, frozenset[Role]] = MappingProxyType(
    {
        Role.MIXED: frozenset({Role.MIXED}),
        Role.PREFILL: frozenset({Role.PREFILL, Role.MIXED}),
        Role.DECODE: frozenset({Role.DECODE, Role.MIXED}),
    }
)
"""Who takes which phase, by role. Half a request is of no use to whoever asks for the whole of one."""


class EndpointState(StrEnum):
    """Whether a worker may be picked."""

    READY = "ready"
    DRAINING = "draining"
    """It finishes what it has and takes nothing new."""
    SILENT = "silent"
    """Its connection broke and its lease still runs: picked only when nobody else is there."""
    UNREADY = "unready"
    """Its engine cannot serve now, as it says itself; not picked until it says otherwise."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model under the name that clients ask for."""

    name: str
    adapters: tuple[str, ...] = ()
    context_length: int = 0
    """Longest prompt plus answer, in tokens; 0 when the engine does not say."""
    created_unix_s: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a worker can hold at once."""

    max_sequences: int = 1
    max_queued_requests: int = 0
    """Requests that may wait beyond `max_sequences`; the worker refuses more."""
    kv_blocks: int = 0
    kv_block_size: int = 0
    """Tokens in one KV block; 0 when the engine does not say."""
    adapter_slots: int = 0
    """LoRA adapters that are loaded at the same time; 0 when the engine does not say."""


class Target(NamedTuple):
    """A worker to send a request to."""

    worker_id: WorkerId
    epoch: Epoch
    address: str
    """HOST:PORT of its GenerationService."""
    wants_prefix_hashes: bool = False
    """Whether requests are to bring the hashes of their prompts with them."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is: said once when it registers, constant for its epoch."""

    worker_id: WorkerId
    epoch: Epoch
    address: str
    models: tuple[ServedModel, ...]
    role: Role = Role.MIXED
    engine: str = ""
    capacity: Capacity = Capacity()
    labels: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    reports_prefixes: bool = False
    """Whether it sends prefix reports, for which it wants the hashes of prompts with its requests."""
    target: Target = field(init=False, compare=False, repr=False)
    """Where its requests go; made once, since every route names it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", Target(self.worker_id, self.epoch, self.address, self.reports_prefixes))

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name a client may ask this worker for: models and their adapters."""
        return tuple(name for model in self.models for name in (model.name, *model.adapters))


class TicketPhase(StrEnum):
    """Where one dispatch stands at the worker."""

    ACCEPTED = "accepted"
    """The worker holds the request and its counts include it."""
    FINISHED = "finished"
    """The request has left the worker, for whatever reason."""


class TicketUpdate(NamedTuple):
    """A worker's news of one dispatch. Token counts are 0 while unknown."""

    ticket: Ticket
    phase: TicketPhase
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft_ms: float = 0.0
    """Of a finished request: from its arrival at the worker to its first token; 0 when it had none."""
    duration_ms: float = 0.0
    """Of a finished request: from its arrival at the worker to its end."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a worker measures of itself; absolute numbers, so that a lost report loses nothing."""

    sequence: int = 0
    """Grows by one with every report of one epoch, from 1."""
    queued_requests: int = 0
    running_requests: int = 0
    queued_prompt_tokens: int = 0
    """Prompt tokens that the engine still has to compute for accepted requests."""
    queued_prompt_pairs: float = 0.0
    """For each of these tokens the tokens that it will attend to; 0 when nobody counts them."""
    tokens_in_flight: int = 0
    """Over accepted unfinished requests: prompt tokens plus tokens generated so far."""
    kv_used_blocks: int = 0
    kv_cached_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    """Moving average; 0 until something was measured."""
    attention_ratio: float = 0.0
    """What each token of context costs a prompt token, as a part of its own cost; 0 until something was measured."""
    step_time_ms: float = 0.0
    """Time of one decoding step, moving average; 0 until something was measured."""
    ticket_updates: tuple[TicketUpdate, ...] = ()
    cached_prompt_token_total: int = 0
    prompt_token_total: int = 0
    output_token_total: int = 0
    unready: bool = False
    """Whether the engine cannot serve now."""


@dataclass(frozen=True, slots=True)
class PrefixReport:
    """What changed in a worker's prefix cache of one model, by the hashes that came with prompts."""

    sequence: int
    """Grows by one with every prefix report of one epoch, whatever its model, from 1."""
    model: str
    """The name that clients ask for: of a model, or of an adapter."""
    whole: bool = False
    """Whether the cache holds of this model's prompts what is stored here, and nothing else."""
    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


Terms = tuple[WorkerId, float, float, float, float, float, float, float, float]
"""See `Endpoint.terms`."""


@dataclass(slots=True)
class Endpoint:
    """A worker as a policy sees it: what it is, what it last reported, and the credit given since.

    Credit is the expected work of dispatches that no report has acknowledged yet. It is never negative, and `load`
    and credit never count the same dispatch twice. An endpoint never changes, it is replaced; it is not frozen because
    one is made for every pick and every report, and read by loops to which a tuple's fields are too slow.
    """

    spec: WorkerSpec
    state: EndpointState
    load: LoadReport
    reported_at: float
    """When `load` arrived, by the scheduler's monotonic clock, in seconds."""
    credit_requests: int = 0
    credit_tokens: int = 0
    """Uncached prompt tokens expected of the unacknowledged dispatches."""
    token_ms: float = 0.0
    """Milliseconds this worker needs per prompt token, measured or assumed; always positive in a snapshot."""
    attention_ratio: float = 0.0
    """What each token of context costs a prompt token here, as a part of the token's own cost."""
    free_at: float = 0.0
    """When all prefill that is here or on the way is done, as predicted; by the scheduler's clock, in seconds."""
    interference: float = 1.0
    """How much more than its own length the prefill of one more request counts, for those that decode here."""
    pause_per_ms: float = 0.0
    """And how much more yet for each millisecond of its length."""
    fixed_ms: float = 0.0
    """What one more request costs here beside its wait and its own prefill (`lbcore.cost`)."""
    kv_room_tokens: float = inf
    """Tokens for which there are free KV blocks."""
    kv_ms_per_token: float = 0.0
    """How long it takes until there is room for one token more."""
    speed: float = 0.0
    """What its operator says of its speed beside others', in any unit (the label `speed`); 0 when nothing."""
    latency_ms: float = 0.0
    """Mean time that its last whole answers took; 0 while there are none."""
    latency_requests: float = 0.0
    """Mean of the requests in flight here when those answers ended, themselves among them."""
    is_measured: bool = True
    """Whether `token_ms` was measured, and not only assumed."""
    room: int = field(init=False)
    """How many more requests the worker would take now, to run or to wait; negative when it is over its capacity.

    Stored rather than computed when asked, because a pick may read it of every endpoint; so are `terms`.
    """
    terms: Terms = field(init=False)
    """What the default cost reads of an endpoint, in one piece: id, `token_ms`, the half of `token_ms` ·
    `attention_ratio`, `free_at` in milliseconds, `interference`, `pause_per_ms`,
    `fixed_ms`, `kv_room_tokens`, `kv_ms_per_token`."""

    def __post_init__(self) -> None:
        capacity, load = self.spec.capacity, self.load
        requests = load.queued_requests + load.running_requests + self.credit_requests
        self.room = capacity.max_sequences + capacity.max_queued_requests - requests
        self.terms = (
            self.spec.worker_id,
            self.token_ms,
            self.token_ms * self.attention_ratio * 0.5,
            self.free_at * 1000,
            self.interference,
            self.pause_per_ms,
            self.fixed_ms,
            self.kv_room_tokens,
            self.kv_ms_per_token,
        )

    @property
    def worker_id(self) -> WorkerId:
        return self.spec.worker_id

    @property
    def requests(self) -> int:
        """Requests in flight: queued, running and on the way."""
        return self.load.queued_requests + self.load.running_requests + self.credit_requests

    def wait_ms(self, now: float) -> float:
        """Predicted milliseconds before the prefill of a request that arrived `now` would begin."""
        return max(0.0, self.free_at - now) * 1000

    @property
    def tokens_in_flight(self) -> int:
        return self.load.tokens_in_flight + self.credit_tokens


class Agreement(NamedTuple):
    """What is known to hold for every endpoint of a snapshot. False where it does not, or where nobody has looked."""

    all_mixed: bool = False
    """All take whole requests."""
    all_ready: bool = False
    all_roomy: bool = False
    """All would take one more request."""


class Snapshot(NamedTuple):
    """All endpoints that serve one model at one moment, ordered by worker id."""

    taken_at: float
    pick_count: int
    """How many picks were made for this model before; round robin counts with it."""
    endpoints: tuple[Endpoint, ...]
    agreement: Agreement = Agreement()
    waiting_requests: int = 0
    """Requests that wait for their prefill, in the scheduler and at those endpoints that take what is asked for."""
    terms: tuple[Terms, ...] | None = None
    """Those of the endpoints, for who reads them of all; None where nobody has collected them."""


class RouteFacts(NamedTuple):
    """What a caller of Route says of a request; never its text."""

    request_id: str
    model: str
    prompt_bytes: int = 0
    prefix_hashes: tuple[int, ...] = ()
    """Chained 64-bit hashes of the prompt's whole blocks, first block first."""
    prefix_block_bytes: int = 0
    """Bytes in each block; 0 means blocks that grow with depth, as `lbcore.prefix` has them."""
    max_output_tokens: int = 0
    priority: int = 0
    session_id: str = ""
    tried: frozenset[WorkerId] = frozenset()
    tenant: str = ""
    """On whose behalf; tenants are served in turn where requests wait. Empty is one of them."""
    ttft_slo_ms: float = 0.0
    """Time to first token that it should stay below; 0 for none."""
    tpot_slo_ms: float = 0.0
    """Time per further token that it should stay below; 0 for none."""
    phase: Role = Role.MIXED
    """What is asked for: the whole request, or one phase of it."""
    explain: bool = False
    """Whether its route is to say how it was decided."""


class PickRequest(NamedTuple):
    """The facts of a request that a policy may use: `RouteFacts` in tokens, with what the pool remembers."""

    model: str
    prompt_tokens: int = 0
    """Estimated from bytes; exact counts arrive with reports."""
    hit_tokens: Mapping[WorkerId, float] = NO_HITS
    """Prompt tokens each worker is expected to hold in its prefix cache, at most all of them; absent means 0."""
    max_output_tokens: int = 0
    """0 when the client set no limit."""
    priority: int = 0
    session_id: str = ""
    tried: frozenset[WorkerId] = frozenset()
    """Workers that already failed this request."""
    prefix_key: int = 0
    """The hash of the prompt's first block: equal for prompts that begin alike; 0 when it has none."""
    held_ms: Mapping[WorkerId, float] = NO_HITS
    """Milliseconds of prefill that wait in the scheduler for each worker and come before this request."""
    phase: Role = Role.MIXED
    """What a worker must take to serve it."""
    loading: Mapping[WorkerId, Loading] = NO_LOADING
    """What those workers have to load first that do not have the adapter asked for."""
    ttft_slo_ms: float = 0.0
    """Time to first token that it should stay below, what it has waited already taken off; 0 for none."""
    tpot_slo_ms: float = 0.0


class RefusalReason(StrEnum):
    """Why no worker was picked, most basic reason first."""

    MODEL_NOT_FOUND = "model_not_found"
    """No worker, ready or not, serves the model."""
    NO_READY_WORKER = "no_ready_worker"
    """Workers serve it, but all are draining, lost or already tried."""
    SATURATED = "saturated"
    """Ready workers serve it, but none has room."""
    QUEUE_FULL = "queue_full"
    """Too many wait already, or too long."""
    TENANT_LIMIT = "tenant_limit"
    """Too many of this tenant wait already."""
    DEADLINE = "deadline"
    """Its time was over before a worker had room."""


class Routed(NamedTuple):
    """A pick: the endpoint, who else could do it, and what was thought."""

    endpoint: Endpoint
    fallbacks: tuple[Endpoint, ...] = ()
    """Other candidates, best first."""
    predicted_ttft_ms: float = 0.0
    """0 when the policy does not predict."""
    scores: tuple[tuple[WorkerId, float], ...] = ()
    """What the pick and its fallbacks were worth, in that order; greater is better."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No pick."""

    reason: RefusalReason
    retry_after_s: float = 0.0
    """When it is likely to go better; 0 when nobody can tell."""


Decision = Routed | Refused


class Candidate(NamedTuple):
    """A worker that serves the model, as a decision saw it."""

    worker_id: WorkerId
    cost: float = 0.0
    """What the policy made of it, in the policy's own unit; smaller is better. 0 for one that was left out: it was not
    weighed."""
    cached_tokens: float = 0.0
    """Prompt tokens that its cache is believed to hold."""
    terms: Mapping[str, float] = MappingProxyType({})
    """Parts of the cost by their names, which add up to it; none where the policy has none."""
    excluded_by: str = ""
    """The filter that left it out; empty for one that could be picked."""


class Explanation(NamedTuple):
    """How a decision came about."""

    policy: str
    prompt_tokens: int
    waited_ms: float
    """In the scheduler."""
    reason: str
    """One sentence without its full stop."""
    candidates: tuple[Candidate, ...]
    """Everybody who serves the model: those that could be picked first, cheapest first."""


class Route(NamedTuple):
    """The scheduler's answer to a caller: where to go, under which ticket."""

    target: Target
    ticket: Ticket
    fallbacks: tuple[Target, ...] = ()
    """Who else could serve it, best first, for when the scheduler cannot be asked again."""
    predicted_ttft_ms: float = 0.0
    explanation: Explanation | None = None
    """For a request that asked for one."""


class PolicyAssignment(NamedTuple):
    """Which policy decides for what, as operators say and see it."""

    model: str
    """As clients ask for it; empty for every model that has none of its own."""
    phase: Role
    """`MIXED` stands for whole requests."""
    policy: str
    """As `lbcore.policies.registry.build_policy` reads it; empty to take a model's own away."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as the scheduler shows it to gateways and operators."""

    spec: WorkerSpec
    state: EndpointState
    load: LoadReport
    report_age_ms: float = 0.0
    credit_requests: int = 0
    credit_tokens: int = 0
