"""What a routed request costs a real lb-scheduler: requests per second, and CPU time of its process from the system.

    python -m bench.route [--workers 2,8,64,1000] [--blocks 5,10,100] [--unanswered 64,256] [--policy cost]
    python -m bench.route --waiting 1000,3000
    python -m bench.route --memory

Workers register over Connect and report as `worker.reporter` does. What is routed to one is accepted at once, prefilled
in its turn, and ends a while later. No two prompts have a block in common.

The fleet has room for whatever is asked, and RouteStream keeps a number of questions unanswered. With --waiting the
fleet computes so many prompts in a second, and is asked for 1.2 times as many: each request waits until it is its turn.
A run in which a request was refused, waited and should not have, or did not and should have, ends with a sentence
instead of figures, and with 1.

Rates are of a machine that the client and all the workers share with the scheduler; its CPU time per request is its
own, reports included, and 1,000,000 over it is what one core can route. Each figure is the median of the rounds, and a
round goes over all cases; of CPU the least and the most stand behind it. "others" are cores that the neighbours took,
"spin ms" is the CPU time of a fixed piece of Python, which neighbours make longer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from math import inf
from statistics import median
from time import monotonic

from bench.dataplane.meter import machine_busy_s
from bench.routing.client import Client, Figures, NoFigures, measure, measure_waiting, prompt_tokens
from bench.routing.workers import KV_BLOCK_SIZE, KV_BLOCKS, ample_tokens_per_s, fleet, scheduler, tokens_per_s
from lbcore import log
from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.prefix import PREFIX_BLOCK_BYTES
from worker import reporter

SEGMENT_BYTES, BLOCK_BYTES = 315, 11
"""What `lbcore.prefix` says a segment and each of its blocks take."""

ENDLESS = ("--max-waiting", "1000000", "--max-waiting-mb", "1000000", "--max-wait-s", "100000")
"""What is asked beyond a fleet's capacity waits, however much of it there is."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: with questions unanswered at all times, or for a fleet that is full."""

    workers: int
    blocks: int
    unanswered: int = 0
    full_per_s: int = 0
    """Prompts that the fleet computes in a second; 0 for one that is never full."""


async def calm(neighbours: float) -> None:
    """Returns when neither this process nor the neighbours take more than so many cores."""
    while True:
        before = machine_busy_s(), monotonic()
        await asyncio.sleep(0.5)
        if (machine_busy_s() - before[0]) / (monotonic() - before[1]) <= neighbours:
            return


async def measured(case: Case, seconds: float, options: Sequence[str]) -> Figures:
    """By a scheduler and workers that are there for this alone.

    Raises:
        NoFigures: what happened is not what the case says.
    """
    tokens = prompt_tokens(case.blocks)
    if case.full_per_s:
        options, speed = [*options, *ENDLESS], tokens_per_s(case.full_per_s, case.workers, tokens)
    else:
        speed = ample_tokens_per_s(case.workers, tokens)
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(scheduler(*options))
        workers = await stack.enter_async_context(fleet(case.workers, process.address, speed))
        if case.full_per_s:
            return await measure_waiting(process, workers, case.blocks, case.full_per_s, seconds)
        return await measure(process, workers, case.blocks, case.unanswered, seconds)


async def table(cases: Sequence[Case], rounds: int, seconds: float, options: Sequence[str], neighbours: float) -> None:
    """Prints a line for each case. What the neighbours took more cores from than these is measured again.

    Raises:
        NoFigures: what happened is not what one of the cases says.
    """
    found: dict[Case, list[Figures]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            while len(found[case]) <= number:
                await calm(neighbours)
                try:
                    figures = await measured(case, seconds, options)
                except NoFigures as reason:
                    raise NoFigures(
                        f"With {case.workers} workers and prompts of {case.blocks} blocks: {reason}"
                    ) from None
                if figures.neighbour_cores <= neighbours:
                    found[case].append(figures)
    print(f"{'workers':>7}{'blocks':>7}{'open':>6}{'full at':>9}{'routes/s':>10}{'CPU us/route':>26}", end="")
    print(f"{'on one core/s':>15}{'busy':>6}{'batch':>7}{'reports/s':>11}{'waited':>8}{'wait ms':>9}", end="")
    print(f"{'others':>8}{'spin ms':>9}")
    for case, taken in found.items():
        middle = Figures(*(median(getattr(one, part.name) for one in taken) for part in fields(Figures)))
        cpu_us = [one.cpu_us_per_route for one in taken]
        spread = f"({min(cpu_us):.1f}-{max(cpu_us):.1f})"
        print(
            f"{case.workers:>7}{case.blocks:>7}{case.unanswered or '-':>6}{case.full_per_s or '-':>9}"
            f"{middle.routes_per_s:>10,.0f}{middle.cpu_us_per_route:>9.1f} {spread:<16}"
            f"{1e6 / middle.cpu_us_per_route:>15,.0f}{middle.busy_ratio:>6.0%}{middle.batch:>7.1f}"
            f"{middle.reports_per_s:>11,.0f}{middle.waited_ratio:>8.0%}{middle.wait_ms:>9.0f}"
            f"{middle.neighbour_cores:>8.2f}{middle.spin_ms:>9.2f}",
            flush=True,
        )


async def memory(requests: int) -> None:
    """Prints how resident memory grows, beside what the prefix index may take by its own account."""
    count = 8
    capacity = KV_BLOCKS * KV_BLOCK_SIZE * 4 // PREFIX_BLOCK_BYTES
    print(f"{count} workers that hold {capacity} units of 256 bytes each, {requests} requests of distinct prompts")
    print(f"{'blocks':>7}{'before MB':>11}{'after MB':>10}{'grown MB':>10}{'index MB':>10}{'other MB':>10}")
    for blocks in (1, 5, 20):
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(scheduler())
            speed = ample_tokens_per_s(count, prompt_tokens(blocks))
            workers = await stack.enter_async_context(fleet(count, process.address, speed))
            await measure(process, workers, 0, 256, 0.5)
            before = process.rss_bytes()
            client = Client(process.address, workers, blocks, unanswered=256)
            running = asyncio.create_task(client.run())
            while client.routed < requests and client.all_went and not running.done():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            if running.done():
                running.result()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if not client.all_went:
                raise NoFigures("A request was refused or had to wait.")
            await workers.idle()
            after = process.rss_bytes()
            # So few blocks have one unit each.
            held = min(capacity * count, requests * blocks)
            index = held / blocks * SEGMENT_BYTES + held * BLOCK_BYTES
            figures = (before, after, after - before, index, after - before - index)
            print(f"{blocks:>7} " + "".join(f"{size / 1e6:>10.1f}" for size in figures), flush=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=_numbers, default=[2, 8, 64, 1000])
    parser.add_argument("--blocks", type=_numbers, default=[5, 10, 100])
    parser.add_argument("--unanswered", type=_numbers, default=[64, 256], help="questions, at all times")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--neighbours",
        type=float,
        default=inf,
        metavar="CORES",
        help="waits until everybody else takes no more, and measures again what they disturbed",
    )
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument(
        "--pause-ms", type=float, default=1000 * reporter.COALESCE_S, help="shortest time between a worker's reports"
    )
    parser.add_argument(
        "--waiting", type=_numbers, metavar="PER_S", help="fleets that are full at so many requests per second instead"
    )
    parser.add_argument("--memory", action="store_true", help="resident memory over 100,000 requests instead")
    options = parser.parse_args()
    log.setup("bench", "error")
    reporter.COALESCE_S = options.pause_ms / 1000
    if options.waiting:
        loads = [{"full_per_s": per_s} for per_s in options.waiting]
    else:
        loads = [{"unanswered": count} for count in options.unanswered]
    cases = [Case(size, length, **load) for size in options.workers for length in options.blocks for load in loads]
    try:
        if options.memory:
            asyncio.run(memory(100_000))
        else:
            asyncio.run(table(cases, options.rounds, options.seconds, ["--policy", options.policy], options.neighbours))
    except NoFigures as reason:
        sys.exit(f"No figures. {reason}")


if __name__ == "__main__":
    main()
