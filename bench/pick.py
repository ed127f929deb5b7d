"""What one pick costs: microseconds of pick_request, snapshot, pick and the booking together, while reports come in.

    python bench/pick.py

Every prompt has 25 KiB in 57 blocks: 20 of a system prompt that all share, 31 of one of 200 conversations, 6 never
seen. Before each pick two reports arrive, untimed, of workers taken in turn; they acknowledge what was dispatched to
them, and end what they had acknowledged before. The times are of the thread's own processor, so that neighbours on the
machine count only through its caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from statistics import quantiles
from time import thread_time

from lbcore.pick import pick
from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Dispatched, Registered, Reported
from lbcore.prefix import bytes_of
from lbcore.types import (
    Capacity,
    Epoch,
    LoadReport,
    Routed,
    RouteFacts,
    ServedModel,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
)

MODEL = "model"
FLEETS = (8, 64, 1000)
PICKS = 1500
WARM_UP = 300
REPORTS_PER_PICK = 2


class Fleet:
    """Workers that accept what is sent to them and report it when it is their turn."""

    def __init__(self, size: int, pool: WorkerPool, rng: Random) -> None:
        self.pool = pool
        self.rng = rng
        self.ids = [WorkerId(f"10.0.{number // 250}.{number % 250}:8000") for number in range(size)]
        self.accepted: dict[WorkerId, list[Ticket]] = {worker_id: [] for worker_id in self.ids}
        self.running: dict[WorkerId, list[Ticket]] = {worker_id: [] for worker_id in self.ids}
        self.sequence = 0
        for number, worker_id in enumerate(self.ids):
            capacity = Capacity(max_sequences=256, max_queued_requests=1024, kv_blocks=30_000, kv_block_size=16)
            spec = WorkerSpec(worker_id, Epoch(1), worker_id, (ServedModel(MODEL),), capacity=capacity)
            pool.handle(Registered(spec, number), 0.0)
            self.report(worker_id, 0.0)

    def report(self, worker_id: WorkerId, now: float) -> None:
        self.sequence += 1
        tickets, self.accepted[worker_id] = self.accepted[worker_id], []
        ended, self.running[worker_id] = self.running[worker_id], tickets
        report = LoadReport(
            sequence=self.sequence,
            queued_requests=self.rng.randrange(4),
            running_requests=self.rng.randrange(60),
            queued_prompt_tokens=self.rng.randrange(20_000),
            prefill_tokens_per_s=8_000 + 4_000 * self.rng.random(),
            step_time_ms=20.0,
            ticket_updates=(
                *(TicketUpdate(ticket, TicketPhase.ACCEPTED, 6_400) for ticket in tickets),
                *(TicketUpdate(ticket, TicketPhase.FINISHED, 6_400, 5_000, 250, 300.0, 5000.0) for ticket in ended),
            ),
        )
        self.pool.handle(Reported(worker_id, Epoch(1), report), now)


def prompts(rng: Random) -> Iterator[RouteFacts]:
    """Requests without end."""

    def hashes(count: int) -> tuple[int, ...]:
        return tuple(rng.getrandbits(64) for _ in range(count))

    system = hashes(20)
    conversations = [hashes(31) for _ in range(200)]
    while True:
        blocks = system + rng.choice(conversations) + hashes(6)
        yield RouteFacts("request", MODEL, bytes_of(len(blocks)), blocks)


def measure(policy_name: str, size: int) -> tuple[float, float]:
    """Median and 99th percentile in microseconds."""
    rng = Random(size)
    policy = build_policy(policy_name)
    pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
    fleet = Fleet(size, pool, rng)
    times: list[float] = []
    requests = prompts(rng)
    turn = 0
    for number in range(PICKS + WARM_UP):
        now = number / 1000
        for _ in range(REPORTS_PER_PICK):
            fleet.report(fleet.ids[turn % size], now)
            turn += 1
        facts = next(requests)
        ticket = Ticket(number + 1)
        started = thread_time()
        request = pool.pick_request(facts)
        decision = pick(request, pool.snapshot(MODEL, now), policy, rng)
        assert isinstance(decision, Routed)
        pool.handle(Dispatched(ticket, decision.endpoint.worker_id, request, facts), now)
        times.append(thread_time() - started)
        fleet.accepted[decision.endpoint.worker_id].append(ticket)
    cuts = quantiles(times[WARM_UP:], n=100)
    return cuts[49] * 1e6, cuts[98] * 1e6


def main() -> None:
    print(f"{'policy':<16}" + "".join(f"{f'{size} workers':>20}" for size in FLEETS))
    print(f"{'':<16}" + f"{'p50 us':>11}{'p99 us':>9}" * len(FLEETS))
    for name in sorted(PRESETS):
        cells = [measure(name, size) for size in FLEETS]
        print(f"{name:<16}" + "".join(f"{median:>11.1f}{tail:>9.1f}" for median, tail in cells), flush=True)


if __name__ == "__main__":
    main()
