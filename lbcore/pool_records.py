"""What a pool remembers of one worker and of one model. The pool alone changes them."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import exp, inf
from statistics import fmean

from lbcore.adapters import LoadedAdapters, Loading
from lbcore.cost import (
    BALANCE_TAU_S,
    DEFAULT_ATTENTION_RATIO,
    DEFAULT_PREFILL_MS_PER_TOKEN,
    SAVED_TAU_S,
    burden,
    queue_ms,
)
from lbcore.credit import Account
from lbcore.ewma import DecayingAverage
from lbcore.prefix import (
    DEFAULT_CAPACITY_UNITS,
    MAX_CAPACITY_UNITS,
    PREFIX_BLOCK_BYTES,
    PrefixIndex,
    bytes_of,
)
from lbcore.sessions import Sessions
from lbcore.told_prefixes import ToldPrefixes
from lbcore.types import (
    NO_HITS,
    NO_LOADING,
    TAKERS,
    Agreement,
    Endpoint,
    EndpointState,
    LoadReport,
    PrefixReport,
    Role,
    RouteFacts,
    Snapshot,
    Terms,
    Ticket,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
)

PRIOR_TOKENS_PER_BYTE = 0.25
"""Tokens in one byte of prompt before anything was counted: the usual four bytes of English to a token."""

AGE_SAMPLES = 16
"""Acknowledgements of which the soonest counts as the age of reports."""

TOLD_AGAIN = 64
"""Tickets remembered lest what is told again be counted again; news is acknowledged long before as many have ended."""

LATENCY_ANSWERS = 15
"""Answers over which the latency of a worker is averaged, as LMDeploy's proxy does."""

MAX_PROMPTS = 1024
"""Dispatches of one worker whose prompts count as in use; the oldest are given up. Four times the 256 sequences that
engines run at once by default."""

MAX_LESSON_BYTES = 65_536
"""A longer prompt teaches tokens per byte as much as one of this length, so that none outweighs all others."""

_NO_REPORT = LoadReport()
_READY = EndpointState.READY
_MIXED = Role.MIXED


def _tokens_per_byte() -> DecayingAverage:
    # An observation weighs as many bytes as it covers; the prior as much as one page of text.
    return DecayingAverage(prior=PRIOR_TOKENS_PER_BYTE, prior_weight=4096.0, tau_s=600.0)


def _trust() -> DecayingAverage:
    # Full trust counts as four answers, so a single cold one costs a fifth; distrust is forgotten in some minutes.
    return DecayingAverage(prior=1.0, prior_weight=4.0, tau_s=300.0)


def _waiting(endpoint: Endpoint) -> int:
    return endpoint.load.queued_requests + endpoint.credit_requests


def _declared_speed(spec: WorkerSpec) -> float:
    try:
        speed = float(spec.labels.get("speed", 0))
    except ValueError:
        return 0.0
    return speed if 0.0 < speed < inf else 0.0


@dataclass(slots=True, eq=False)
class WorkerRecord:
    """One worker epoch. A restart makes another record, so nothing of an earlier epoch can be mistaken for this."""

    spec: WorkerSpec
    connection: int
    """The connection it registered on last; older ones mean nothing any more."""
    lease_until: float
    reported_at: float
    connected: bool = True
    draining: bool = False
    """Once true, true for the rest of the epoch."""
    load: LoadReport = _NO_REPORT
    token_ms: float = DEFAULT_PREFILL_MS_PER_TOKEN
    """Milliseconds per prompt token, measured by the worker, or assumed until it has; always positive."""
    is_measured: bool = False
    """Whether that was measured, here or at its peers."""
    attention_ratio: float = DEFAULT_ATTENTION_RATIO
    free_at: float = 0.0
    """When the prefill that is here and on the way will be done."""
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=AGE_SAMPLES))
    """Seconds from some of the last dispatches to their acknowledgements."""
    busy_at: float = field(init=False)
    """When it last had anything to do, or else joined."""
    recent_ms: float = 0.0
    """Prefill given to it lately, as of `recent_at`."""
    saved_ms: float = 0.0
    """Prefill that its cache alone saved lately, as of then."""
    recent_at: float = 0.0
    speed: float = field(init=False)
    answers: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=LATENCY_ANSWERS))
    """Of the last whole answers: milliseconds they took, and requests in flight when they ended."""
    latency: tuple[float, float] = (0.0, 0.0)
    """The means of both."""
    ended: deque[Ticket] = field(default_factory=lambda: deque(maxlen=TOLD_AGAIN))
    """The last tickets whose answers were counted."""
    trust: DecayingAverage = field(default_factory=_trust)
    """How far believed prefix hits come true here, 0..1."""
    prompts: OrderedDict[Ticket, ModelRecord] = field(default_factory=OrderedDict)
    """Dispatches with hashes that are not over, oldest first."""
    prefix_sequence: int = 0
    """Of the last prefix report."""
    told_models: set[str] = field(default_factory=set)
    """Models of which it told everything, and of which no news was missed since."""
    told_anew: bool = False
    """Whether it was asked to tell everything again, and has not begun to."""
    model_names: frozenset[str] = field(init=False)
    adapter_names: frozenset[str] = field(init=False)
    """Those of the names that are adapters."""
    adapters: LoadedAdapters = field(init=False)
    account: Account = field(init=False)
    seats: list[tuple[ModelRecord, int]] = field(default_factory=list)
    """Each model it serves, with the place of its endpoint there."""
    endpoint: Endpoint = field(init=False)
    """What `describe` said after the last change; never changed itself, always replaced."""

    def __post_init__(self) -> None:
        self.model_names = frozenset(self.spec.model_names)
        self.adapter_names = frozenset(name for model in self.spec.models for name in model.adapters)
        self.adapters = LoadedAdapters(self.spec.capacity.adapter_slots)
        self.account = Account(self.spec.worker_id)
        self.speed = _declared_speed(self.spec)
        self.busy_at = self.reported_at
        self.describe(self.reported_at)

    def reported(self, load: LoadReport, now: float) -> None:
        """What it says of itself, once credit is settled and speed measured."""
        self.load = load
        self.reported_at = now
        made_at = now - min(self.ages, default=0.0)
        free_at = made_at + queue_ms(load, self.token_ms, self.attention_ratio) / 1000
        for booking in self.account.open.values():
            # What it does not know of yet came behind what it knows, and when it came the worker may have been idle.
            free_at = max(free_at, booking.at) + booking.prefill_ms / 1000
        self.free_at = free_at

    def heard_after(self, seconds: float) -> None:
        """A dispatch was acknowledged so long after it was made. The soonest of the last ones tells how old a report is
        when it comes: no clock of the worker's need agree with this one."""
        self.ages.append(seconds)

    def given(self, prefill_ms: float, now: float, saved_ms: float = 0.0) -> None:
        """So much prefill is on its way here, and so much its cache alone saves."""
        self.busy_at = now
        self.free_at = max(self.free_at, now) + prefill_ms / 1000
        self.recent_ms, self.saved_ms = self._recent(now) + prefill_ms, self._saved(now) + saved_ms
        self.recent_at = now

    def joins(self, peers: Collection[WorkerRecord], now: float) -> None:
        """It counts as given as much as these were on average: or else all work would go to who comes new, with
        nothing in its caches, until it has caught up."""
        if peers:
            self.recent_ms = fmean(peer._recent(now) for peer in peers)
            self.recent_at = now

    def taken_back(self, prefill_ms: float, now: float) -> None:
        """It will not come after all."""
        self.free_at = max(now, self.free_at - prefill_ms / 1000)
        self.recent_ms, self.saved_ms = max(0.0, self._recent(now) - prefill_ms), self._saved(now)
        self.recent_at = now

    def answered(self, update: TicketUpdate) -> None:
        """A whole answer was given; it may be told of more than once."""
        if update.ticket not in self.ended:
            self.ended.append(update.ticket)
            self.answers.append((update.duration_ms, self.load.queued_requests + self.load.running_requests))
            size = len(self.answers)
            took_ms = sum([took for took, _ in self.answers]) / size
            self.latency = took_ms, sum([beside for _, beside in self.answers]) / size

    def told(self, report: PrefixReport) -> bool:
        """Takes in the number of a prefix report, one not seen before; False when reports before it never came."""
        complete = report.sequence == self.prefix_sequence + 1
        self.prefix_sequence = report.sequence
        if not complete:
            self.told_models.clear()
        if report.whole and report.model in self.model_names:
            self.told_models.add(report.model)
            self.told_anew = False
        return complete

    def took_up(self, ticket: Ticket, served: ModelRecord) -> None:
        """The blocks of this dispatch's prompt are in use until it is over."""
        self.prompts[ticket] = served
        if len(self.prompts) > MAX_PROMPTS:
            self.over(next(iter(self.prompts)), computed=False)

    def over(self, ticket: Ticket, *, computed: bool) -> None:
        """They are not any more."""
        served = self.prompts.pop(ticket, None)
        if served is None:
            return
        if self.spec.reports_prefixes:
            served.told.over(self.spec.worker_id, ticket)
        else:
            served.prefixes.over(self.spec.worker_id, ticket, computed=computed)

    def _recent(self, now: float) -> float:
        return self.recent_ms * exp((self.recent_at - now) / BALANCE_TAU_S) if self.recent_ms else 0.0

    def _saved(self, now: float) -> float:
        return self.saved_ms * exp((self.recent_at - now) / SAVED_TAU_S) if self.saved_ms else 0.0

    def describe(self, now: float) -> None:
        """Make the endpoint say what the rest of this record says."""
        load, requests, tokens = self.load, self.account.requests, self.account.tokens
        state = _READY if self.connected else EndpointState.SILENT
        if load.unready:
            state = EndpointState.UNREADY
        if self.draining:
            state = EndpointState.DRAINING
        terms = burden(load, requests, tokens, self.spec.capacity, self._recent(now), self._saved(now))
        self.endpoint = Endpoint(
            self.spec,
            state,
            load,
            self.reported_at,
            requests,
            tokens,
            self.token_ms,
            self.attention_ratio,
            self.free_at,
            terms.interference,
            terms.pause_per_ms,
            terms.fixed_ms,
            terms.kv_room_tokens,
            terms.kv_ms_per_token,
            self.speed,
            *self.latency,
            self.is_measured,
        )
        for served, seat in self.seats:
            served.seat(seat, self.endpoint)


@dataclass(slots=True, eq=False)
class ModelRecord:
    """One name that clients ask for, as long as somebody serves it."""

    name: str
    workers: list[WorkerRecord] = field(default_factory=list)
    """Ordered by worker id; never empty in a pool."""
    pick_count: int = 0
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    """Who holds what of this model's prompts: KV blocks of one model or adapter are of no use to another."""
    told: ToldPrefixes = field(default_factory=ToldPrefixes)
    """The same of workers that tell what their caches hold; each worker is in one of the two only."""
    sessions: Sessions = field(default_factory=Sessions)
    tokens_per_byte: DecayingAverage = field(default_factory=_tokens_per_byte)
    _endpoints: list[Endpoint] = field(default_factory=list)
    """Those of `workers`, as they describe themselves now."""
    _terms: list[Terms] = field(default_factory=list)
    """Those of `_endpoints`: to ask each of them is a tenth of what a pick costs in a great fleet."""
    _taken: tuple[Endpoint, ...] | None = None
    """`_endpoints` as the last snapshot has them; None when they have changed since."""
    _taken_terms: tuple[Terms, ...] = ()
    """The same of `_terms`."""
    _waiting: dict[Role, int] = field(default_factory=lambda: dict.fromkeys(Role, 0))
    """Requests that wait for their prefill at the endpoints of each role."""
    _is_adapter: bool = False
    """Whether it is the name of an adapter at any of them."""
    _agreement: Agreement | None = None
    """None when it may have changed since it was last worked out."""

    def join(self, worker: WorkerRecord, now: float) -> None:
        insort(self.workers, worker, key=lambda other: other.spec.worker_id)
        self._number()
        self.bound_prefixes(worker, now)

    def leave(self, worker: WorkerRecord) -> None:
        self.workers.remove(worker)
        self._number()
        self.prefixes.drop(worker.spec.worker_id)
        self.told.drop(worker.spec.worker_id)

    def seat(self, seat: int, endpoint: Endpoint) -> None:
        """The worker in this seat describes itself anew."""
        before = self._endpoints[seat]
        self._endpoints[seat] = endpoint
        self._terms[seat] = endpoint.terms
        self._waiting[endpoint.spec.role] += _waiting(endpoint) - _waiting(before)
        self._taken = None
        if before.state is not endpoint.state or (before.room > 0) != (endpoint.room > 0):
            self._agreement = None

    def snapshot(self, now: float, phase: Role) -> Snapshot:
        """All endpoints as they are, and how many wait at those that take the phase."""
        endpoints, agreement = self._taken, self._agreement
        if endpoints is None:
            endpoints = self._taken = tuple(self._endpoints)
            self._taken_terms = tuple(self._terms)
        if agreement is None:
            agreement = self._agreement = Agreement(
                all(endpoint.spec.role is Role.MIXED for endpoint in endpoints),
                all(endpoint.state is _READY for endpoint in endpoints),
                all(endpoint.room > 0 for endpoint in endpoints),
            )
        counts = self._waiting
        # Nearly all requests are whole, and those have takers of one role.
        waiting = counts[phase] if phase is _MIXED else sum([counts[role] for role in TAKERS[phase]])
        return Snapshot(now, self.pick_count, endpoints, agreement, waiting, self._taken_terms)

    def _number(self) -> None:
        self._endpoints = [worker.endpoint for worker in self.workers]
        self._terms = [endpoint.terms for endpoint in self._endpoints]
        self._waiting = dict.fromkeys(Role, 0)
        for endpoint in self._endpoints:
            self._waiting[endpoint.spec.role] += _waiting(endpoint)
        self._taken = self._agreement = None
        self._is_adapter = any(self.name in worker.adapter_names for worker in self.workers)
        for seat, worker in enumerate(self.workers):
            worker.seats = [*((served, other) for served, other in worker.seats if served is not self), (self, seat)]

    def learn_length(self, prompt_tokens: int, prompt_bytes: int, now: float) -> None:
        """A prompt of so many bytes had so many tokens."""
        # A token covers a byte at least, but for those of the chat template, which short prompts mostly are.
        ratio = min(1.0, prompt_tokens / prompt_bytes)
        self.tokens_per_byte.observe(ratio, now, min(prompt_bytes, MAX_LESSON_BYTES))

    @property
    def worker_ids(self) -> list[WorkerId]:
        """Of all who serve it."""
        return [worker.spec.worker_id for worker in self.workers]

    def loading(self, now: float) -> Mapping[WorkerId, Loading]:
        """What those have to load first for whom this is the name of an adapter that is not loaded."""
        if not self._is_adapter:
            return NO_LOADING
        return {
            worker.spec.worker_id: loading
            for worker in self.workers
            if self.name in worker.adapter_names and (loading := worker.adapters.loading(self.name, now))
        }

    def bound_prefixes(self, worker: WorkerRecord, now: float) -> None:
        """Believe no more of a worker than its KV cache can hold."""
        capacity = worker.spec.capacity
        kv_tokens = capacity.kv_blocks * capacity.kv_block_size
        units = DEFAULT_CAPACITY_UNITS
        if kv_tokens:
            units = int(kv_tokens / self.tokens_per_byte.read(now) / PREFIX_BLOCK_BYTES)
        self.prefixes.set_capacity(worker.spec.worker_id, min(MAX_CAPACITY_UNITS, units))

    def hit_tokens(
        self, facts: RouteFacts, tokens_per_byte: float, trust_ratios: Mapping[WorkerId, float]
    ) -> Mapping[WorkerId, float]:
        """Tokens of the prompt that each worker is believed to hold, as far as each is trusted; of those that told, the
        whole of it."""
        hashes = facts.prefix_hashes
        holders, tellers = self.prefixes.holders(hashes), self.told.holders(hashes)
        if not holders and not tellers:
            return NO_HITS
        block_bytes, prompt_bytes = facts.prefix_block_bytes, facts.prompt_bytes
        hit_tokens: dict[WorkerId, float] = {}
        for holding, blocks in holders:
            # The blocks of a prompt are no longer than the prompt, whatever a caller says of their size.
            tokens = min(bytes_of(blocks, block_bytes), prompt_bytes) * tokens_per_byte
            hit_tokens |= {worker_id: tokens * trust_ratios[worker_id] for worker_id in holding}
        for holding, blocks in tellers:
            tokens = min(bytes_of(blocks, block_bytes), prompt_bytes) * tokens_per_byte
            hit_tokens.update(dict.fromkeys(holding, tokens))
        return hit_tokens
