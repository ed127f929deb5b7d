"""What is decided, compared with the plainest way to decide it: every number made anew, from what was said and sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

import pytest

from lbcore.cost import (
    BALANCE_WEIGHT,
    CROWDING_WEIGHT,
    DECODING_WEIGHT,
    DEFAULT_ATTENTION_RATIO,
    DEFAULT_STEP_MS,
    EXPECTED_OUTPUT_TOKENS,
    INTERFERENCE_PER_REQUEST,
    INTERFERENCE_REQUEST_LIMIT,
    QUEUE_LIMIT,
    QUEUE_WEIGHT,
    SAVED_TAU_S,
    SAVED_WEIGHT,
    STEP_SLOPE,
)
from lbcore.pick import FALLBACK_COUNT, pick
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Disconnected, Dispatched, DrainNoticed, Registered, Reported
from lbcore.prefix import PREFIX_BLOCK_BYTES, bytes_of
from lbcore.types import (
    Capacity,
    Epoch,
    LoadReport,
    RefusalReason,
    Refused,
    Role,
    Routed,
    RouteFacts,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
)
from tests.fleet import MODEL, spec

STEPS = 300
TOKENS_PER_BYTE = 0.25
"""What a pool assumes that was never told a prompt's length in tokens."""


@dataclass
class PlainWorker:
    """One worker as whoever follows every event knows it."""

    spec: WorkerSpec
    load: LoadReport = field(default_factory=LoadReport)
    connected: bool = True
    draining: bool = False
    credit: dict[Ticket, int] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    free_ms: float = 0.0
    """Prefill in front of the next request."""
    credit_ms: dict[Ticket, float] = field(default_factory=dict)
    given_ms: float = 0.0
    """All prefill ever sent here, no time goes by in these tests; of a newcomer what the others had on average."""
    saved_ms: float = 0.0
    """All prefill that was saved here and would not have been elsewhere."""

    @property
    def requests(self) -> int:
        return self.load.queued_requests + self.load.running_requests + len(self.credit)

    def hit_tokens(self, facts: RouteFacts) -> float:
        blocks = 0
        while blocks < len(facts.prefix_hashes) and facts.prefix_hashes[blocks] in self.held:
            blocks += 1
        return bytes_of(blocks, facts.prefix_block_bytes) * TOKENS_PER_BYTE

    @property
    def token_ms(self) -> float:
        return 1000.0 / self.load.prefill_tokens_per_s if self.load.prefill_tokens_per_s else 0.1

    def own_ms(self, facts: RouteFacts) -> float:
        prompt, held = float(round(facts.prompt_bytes * TOKENS_PER_BYTE)), self.hit_tokens(facts)
        return self.token_ms * (prompt - held + DEFAULT_ATTENTION_RATIO * (prompt**2 - held**2) / 2)

    def delay_ms(self, facts: RouteFacts, waiting: float) -> float:
        """As `lbcore.cost` has it; so many requests wait for each worker."""
        requests, load, sequences = self.requests, self.load, max(1, self.spec.capacity.max_sequences)
        step_ms = load.step_time_ms or DEFAULT_STEP_MS
        fixed_ms = load.step_time_ms * (1.5 if requests else 1.0) + BALANCE_WEIGHT * self.given_ms
        fixed_ms += CROWDING_WEIGHT * EXPECTED_OUTPUT_TOKENS * STEP_SLOPE * step_ms * requests
        fixed_ms += DECODING_WEIGHT * EXPECTED_OUTPUT_TOKENS * load.step_time_ms
        if requests >= sequences:
            fixed_ms += (requests - sequences + 1) * EXPECTED_OUTPUT_TOKENS * step_ms / sequences
        own_ms = self.own_ms(facts)
        pauses = min(1.0, self.given_ms / 120_000) + own_ms / (EXPECTED_OUTPUT_TOKENS * step_ms)
        slowdown = 1.0 + INTERFERENCE_PER_REQUEST * min(requests, INTERFERENCE_REQUEST_LIMIT) * pauses
        slowdown += SAVED_WEIGHT * self.saved_ms / (SAVED_TAU_S * 1000)
        return self.free_ms + fixed_ms + own_ms * (slowdown + QUEUE_WEIGHT * min(waiting, QUEUE_LIMIT))


def best(costs: Sequence[float], count: int, rng: Random) -> list[int]:
    """The few smallest, ties broken by chance."""
    dearest = sorted(costs)[:count][-1]
    ranking = [index for index, cost in enumerate(costs) if cost <= dearest]
    if len(ranking) > count:
        equal = [index for index in ranking if costs[index] == dearest]
        ranking = [index for index in ranking if costs[index] < dearest]
        ranking += rng.sample(equal, count - len(ranking))
    return sorted(ranking, key=lambda index: (costs[index], rng.random()))


def plain_decision(
    name: str, facts: RouteFacts, workers: Sequence[PlainWorker], picks: int, rng: Random
) -> list[WorkerId] | RefusalReason:
    """The pick and its fallbacks, or why there is none."""
    if not workers:
        return RefusalReason.MODEL_NOT_FOUND
    able = [worker for worker in workers if worker.spec.role is Role.MIXED]
    able = [worker for worker in able if worker.spec.worker_id not in facts.tried]
    able = [worker for worker in able if not worker.draining and not worker.load.unready]
    able = [worker for worker in able if worker.connected] or able
    if not able:
        return RefusalReason.NO_READY_WORKER
    able = [
        worker
        for worker in able
        if worker.requests < worker.spec.capacity.max_sequences + worker.spec.capacity.max_queued_requests
    ]
    if not able:
        return RefusalReason.SATURATED
    count = min(1 + FALLBACK_COUNT, len(able))
    few = [0.0 - 1.0 / (1 + worker.requests) for worker in able]
    match name:
        case "cost":
            takers = [worker for worker in workers if worker.spec.role is Role.MIXED]
            waiting = sum(worker.load.queued_requests + len(worker.credit) for worker in takers) / len(able)
            ranking = best([worker.delay_ms(facts, waiting) for worker in able], count, rng)
        case "least_requests":
            ranking = best(few, count, rng)
        case "power_of_two":
            drawn = rng.sample(range(len(able)), min(max(2, 1 + FALLBACK_COUNT), len(able)))
            first = min(drawn[:2], key=few.__getitem__)
            ranking = [first, *sorted((index for index in drawn if index != first), key=few.__getitem__)]
        case "random":
            ranking = rng.sample(range(len(able)), count)
        case _:
            ranking = [(picks + step) % len(able) for step in range(count)]
    return [able[index].spec.worker_id for index in ranking]


class Life:
    """A pool, and the plain workers beside it, through the same events."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
        self.workers: dict[WorkerId, PlainWorker] = {}
        self.picks = 0
        self.beginnings = [tuple(self.rng.getrandbits(64) for _ in range(40)) for _ in range(3)]

    def register(self) -> None:
        rng = self.rng
        capacity = Capacity(rng.choice((1, 4, 64)), rng.choice((0, 3, 100)))
        role = rng.choice((Role.MIXED,) * 9 + (Role.DECODE,))
        new = spec(f"w{rng.randrange(100)}", capacity=capacity, role=role)
        if new.worker_id not in self.workers:
            given = [worker.given_ms for worker in self.workers.values()]
            self.workers[new.worker_id] = PlainWorker(new, given_ms=fmean(given) if given else 0.0)
            self.pool.handle(Registered(new, 0), 0.0)
            self.report(self.workers[new.worker_id])

    def report(self, worker: PlainWorker) -> None:
        rng = self.rng
        taken = [ticket for ticket in worker.credit if rng.random() < 0.7]
        for ticket in taken:
            del worker.credit[ticket], worker.credit_ms[ticket]
        worker.load = LoadReport(
            sequence=worker.load.sequence + 1,
            queued_requests=rng.choice((0, 0, 2)),
            running_requests=rng.choice((0, 3, 30)),
            queued_prompt_tokens=rng.choice((0, 5000)),
            # Always measured: what is assumed of a worker that has not measured depends on its peers.
            prefill_tokens_per_s=rng.choice((5000.0, 20_000.0)),
            step_time_ms=rng.choice((0.0, 10.0, 30.0)),
            ticket_updates=tuple(TicketUpdate(ticket, TicketPhase.ACCEPTED) for ticket in taken),
            unready=rng.random() < 0.05,
        )
        worker.free_ms = worker.token_ms * worker.load.queued_prompt_tokens + sum(worker.credit_ms.values())
        self.pool.handle(Reported(worker.spec.worker_id, Epoch(1), worker.load), 0.0)

    def leave(self) -> None:
        worker = self.rng.choice([*self.workers.values()])
        if self.rng.random() < 0.5:
            worker.draining = True
            self.pool.handle(DrainNoticed(worker.spec.worker_id, Epoch(1)), 0.0)
        else:
            worker.connected = False
            self.pool.handle(Disconnected(worker.spec.worker_id, Epoch(1), 0), 0.0)

    def question(self) -> RouteFacts:
        rng = self.rng
        shared = rng.choice(self.beginnings)[: rng.choice((0, 3, 8, 12, 34, 40))]
        hashes = shared + tuple(rng.getrandbits(64) for _ in range(rng.randrange(4)))
        tried = frozenset(rng.sample([*self.workers], min(len(self.workers), rng.choice((0, 0, 0, 2)))))
        block_bytes = rng.choice((0, 0, PREFIX_BLOCK_BYTES))
        size = bytes_of(len(hashes), block_bytes) + rng.randrange(PREFIX_BLOCK_BYTES)
        return RouteFacts("r", MODEL, size, hashes, block_bytes, tried=tried)

    def book(self, ticket: Ticket, facts: RouteFacts, decision: Routed) -> None:
        worker = self.workers[decision.endpoint.worker_id]
        request = self.pool.pick_request(facts)
        worker.credit[ticket] = max(0, round(request.prompt_tokens - worker.hit_tokens(facts)))
        own_ms = worker.credit_ms[ticket] = worker.own_ms(facts)
        worker.free_ms += own_ms
        worker.given_ms += own_ms
        here, elsewhere = worker.hit_tokens(facts), 0.0
        if len(self.workers) > 1:
            elsewhere = max(other.hit_tokens(facts) for other in self.workers.values() if other is not worker)
        if here > elsewhere:
            pairs = (here**2 - elsewhere**2) / 2
            worker.saved_ms += worker.token_ms * (here - elsewhere + DEFAULT_ATTENTION_RATIO * pairs)
        worker.held.update(facts.prefix_hashes)
        self.picks += 1
        self.pool.handle(Dispatched(ticket, worker.spec.worker_id, request, facts), 0.0)


@pytest.mark.parametrize("name", ["cost", "least_requests", "power_of_two", "random", "round_robin"])
@pytest.mark.parametrize("seed", range(4))
def test_a_decision_is_that_of_the_plainest_way_with_the_same_chance(name: str, seed: int) -> None:
    life, policy = Life(seed), build_policy(name)
    routed = 0
    for step in range(STEPS):
        life.register()
        for _ in range(life.rng.randrange(4)):
            life.report(life.rng.choice([*life.workers.values()]))
        if life.rng.random() < 0.1:
            life.leave()
        facts = life.question()
        decision = pick(life.pool.pick_request(facts), life.pool.snapshot(MODEL, 0.0), policy, Random(step))
        ordered = [life.workers[worker_id] for worker_id in sorted(life.workers)]
        expected = plain_decision(name, facts, ordered, life.picks, Random(step))
        if isinstance(decision, Refused):
            assert decision.reason is expected
            continue
        assert [decision.endpoint.worker_id, *(other.worker_id for other in decision.fallbacks)] == expected
        life.book(Ticket(step + 1), facts, decision)
        routed += 1
    assert routed > STEPS / 2
