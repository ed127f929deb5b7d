"""The scheduler is killed, stopped and started again under traffic, and no client notices."""

from __future__ import annotations

import asyncio
import signal

from tests.chaos.crowd import Fate
from tests.chaos.fleet import SIM, Fleet, fleet, stories

SECONDS = 4.0
"""How long clients ask on after each fault."""


async def asked_on(one: Fleet, *faults: signal.Signals | None) -> None:
    """Clients ask all the time; each fault comes in its turn (None: a new scheduler), and some seconds of it pass."""
    asks = [*stories(20, 60), *stories(20, 60, stream=False)]
    expected = await one.crowd.learn(asks)
    over = asyncio.Event()
    running = asyncio.ensure_future(one.crowd.keep_asking(asks, expected, over))
    try:
        await asyncio.sleep(1.0)
        for fault in faults:
            if fault is None:
                await one.restart_scheduler()
            else:
                one.scheduler.send_signal(fault)
            await asyncio.sleep(SECONDS)
    finally:
        over.set()
        await running
    assert set(one.crowd.fates) == {Fate.SAVED}, one.crowd.told[:5]
    assert one.crowd.fates[Fate.SAVED] > 60


async def test_a_scheduler_that_is_gone_for_good_costs_nobody_an_answer() -> None:
    async with fleet(3, *SIM) as one:
        await asked_on(one, signal.SIGKILL)


async def test_a_scheduler_that_is_killed_and_comes_back_costs_nobody_an_answer_and_counts_right() -> None:
    async with fleet(3, *SIM) as one:
        await asked_on(one, signal.SIGKILL, None)
        await one.quiet()


async def test_a_scheduler_that_stands_still_and_goes_on_costs_nobody_an_answer_and_counts_right() -> None:
    async with fleet(3, *SIM) as one:
        await asked_on(one, signal.SIGSTOP, signal.SIGCONT)
        await one.quiet()
