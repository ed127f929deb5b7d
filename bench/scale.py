"""How the scheduler's cost grows: with workers, gateways, the length of prompts and the number of reports.

    python -m bench.scale

Picks and reports alone are timed inside this process, on a simulated clock; gateways and the load of reports on a real
lb-scheduler, by the CPU time that the system counts for it. The last column of a table is the slope between its ends.
The fleets have room for whatever is asked; should a request be refused or wait nevertheless, a sentence and 1 end it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from statistics import median
from time import monotonic, thread_time

from bench.pick import MODEL, Fleet
from bench.routing.client import NoFigures, measure, prompt_tokens
from bench.routing.workers import ample_tokens_per_s, fleet, scheduler
from lbcore import log
from lbcore.pick import pick
from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Dispatched, Reported
from lbcore.prefix import block_hashes, bytes_of
from lbcore.types import Epoch, LoadReport, Routed, RouteFacts, Ticket, TicketPhase, TicketUpdate

WORKERS = (10, 100, 1000)
PROMPT_TOKENS = (1_000, 10_000, 100_000)
BYTES_PER_TOKEN = 4
GATEWAYS = (1, 4, 16)
UPDATES = (0, 10, 100)
PICKS = 300
GATEWAY_WORKERS, GATEWAY_BLOCKS = 2, 5
REPORT_BLOCKS = 16
UNANSWERED = 256


def row(name: str, sizes: Sequence[int], costs: Sequence[float], unit: str) -> None:
    slope = (costs[-1] - costs[0]) / (sizes[-1] - sizes[0])
    cells = "".join(f"{cost:>12.1f}" for cost in costs)
    print(f"{name:<34}{cells}{slope:>14.4f} us per {unit}", flush=True)


def title(what: str, sizes: Sequence[int]) -> None:
    print(f"\n{what:<34}" + "".join(f"{size:>12,}" for size in sizes))


def pick_us(workers: int, tokens: int, shared: float) -> float:
    """Median of pick and booking for distinct prompts, of which this part is a beginning that all workers hold."""
    rng = Random(workers)
    pool, policy = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9), build_policy(DEFAULT_POLICY)
    workers_there = Fleet(workers, pool, rng)
    size = tokens * BYTES_PER_TOKEN
    blocks = len(block_hashes(bytes(size)))
    system = tuple(rng.getrandbits(64) for _ in block_hashes(bytes(int(size * shared))))
    for number, worker_id in enumerate(workers_there.ids):
        facts = RouteFacts("r", MODEL, bytes_of(len(system)), system)
        pool.handle(Dispatched(Ticket(10**9 + number), worker_id, pool.pick_request(facts), facts), 0.0)
    times: list[float] = []
    for number in range(PICKS):
        workers_there.report(workers_there.ids[number % workers], 0.0)
        own = tuple(rng.getrandbits(64) for _ in range(blocks - len(system)))
        facts = RouteFacts("r", MODEL, size, system + own)
        started = thread_time()
        request = pool.pick_request(facts)
        decision = pick(request, pool.snapshot(MODEL, 0.0), policy, rng)
        assert isinstance(decision, Routed)
        pool.handle(Dispatched(Ticket(number + 1), decision.endpoint.worker_id, request, facts), 0.0)
        times.append(thread_time() - started)
        workers_there.accepted[decision.endpoint.worker_id].append(Ticket(number + 1))
    return median(times) * 1e6


def report_us(workers: int, updates: int) -> float:
    """Median of taking one report in, with so many tickets accepted."""
    rng = Random(workers)
    pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
    there = Fleet(workers, pool, rng)
    worker_id = there.ids[0]
    times: list[float] = []
    facts = RouteFacts("r", MODEL, 1000)
    for number in range(100):
        tickets = [Ticket(number * updates + one + 1) for one in range(updates)]
        for ticket in tickets:
            pool.handle(Dispatched(ticket, worker_id, pool.pick_request(facts), facts), 0.0)
        news = tuple(TicketUpdate(ticket, TicketPhase.ACCEPTED, 250) for ticket in tickets)
        report = LoadReport(10**6 + number, prefill_tokens_per_s=9000.0, step_time_ms=20.0, ticket_updates=news)
        started = thread_time()
        pool.handle(Reported(worker_id, Epoch(1), report), 0.0)
        times.append(thread_time() - started)
    return median(times) * 1e6


def hash_us(tokens: int) -> float:
    text = bytes(tokens * BYTES_PER_TOKEN)
    times = []
    for _ in range(9):
        started = thread_time()
        block_hashes(text)
        times.append(thread_time() - started)
    return median(times) * 1e6


async def gateways(seconds: float) -> None:
    title(f"one process, {GATEWAY_WORKERS} workers, {UNANSWERED} open", GATEWAYS)
    speed = ample_tokens_per_s(GATEWAY_WORKERS, prompt_tokens(GATEWAY_BLOCKS))
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(scheduler())
        workers = await stack.enter_async_context(fleet(GATEWAY_WORKERS, process.address, speed))
        found = [
            await measure(process, workers, GATEWAY_BLOCKS, UNANSWERED, seconds, streams=count) for count in GATEWAYS
        ]
    row("CPU us per route, by gateways", GATEWAYS, [one.cpu_us_per_route for one in found], "gateway")


async def reports(seconds: float) -> None:
    """Idle workers report four times a second; with routes, each worker on every change."""
    print(
        f"\n{'workers':>8}{'':>8}{'reports/s':>11}{'routes/s':>10}{'busy':>7}{'CPU us/report':>15}{'CPU us/route':>14}"
    )
    for size in (*WORKERS,):
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(scheduler())
            speed = ample_tokens_per_s(size, prompt_tokens(REPORT_BLOCKS))
            workers = await stack.enter_async_context(fleet(size, process.address, speed))
            await asyncio.sleep(0.5)
            wall, cpu, count = monotonic(), process.cpu_s(), workers.reports
            await asyncio.sleep(seconds * 2)
            wall, cpu, count = monotonic() - wall, process.cpu_s() - cpu, workers.reports - count
            each = 1e6 * cpu / max(1, count)
            print(f"{size:>8}{'idle':>8}{count / wall:>11,.0f}{0:>10}{cpu / wall:>7.0%}{each:>15.0f}", flush=True)
            found = await measure(process, workers, REPORT_BLOCKS, UNANSWERED, seconds)
            print(
                f"{size:>8}{'loaded':>8}{found.reports_per_s:>11,.0f}{found.routes_per_s:>10,.0f}{found.busy_ratio:>7.0%}"
                f"{'':>15}{found.cpu_us_per_route:>14.0f}",
                flush=True,
            )


def main() -> None:
    log.setup("bench", "error")
    title("pick and booking, us, by workers", WORKERS)
    for shared in (0.0, 0.5):
        for tokens in PROMPT_TOKENS:
            name = f"{tokens:,} tokens, {shared:.0%} held by all"
            row(name, WORKERS, [pick_us(size, tokens, shared) for size in WORKERS], "worker")
    title("pick and booking, us, by tokens", PROMPT_TOKENS)
    for size in WORKERS:
        row(f"{size} workers", PROMPT_TOKENS, [pick_us(size, tokens, 0.0) for tokens in PROMPT_TOKENS], "token")
    row("hashing, at the gateway", PROMPT_TOKENS, [hash_us(tokens) for tokens in PROMPT_TOKENS], "token")
    title("one report, us, by tickets in it", UPDATES)
    for size in WORKERS:
        row(f"{size} workers", UPDATES, [report_us(size, count) for count in UPDATES], "ticket")
    try:
        asyncio.run(gateways(1.0))
        asyncio.run(reports(1.5))
    except NoFigures as reason:
        sys.exit(f"No figures. {reason}")


if __name__ == "__main__":
    main()
