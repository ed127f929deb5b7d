"""The clocks, real and manual."""

from __future__ import annotations

import asyncio

from lbcore.clock import Clock, MonotonicClock, unix_time_s
from tests.fakes import ManualClock


async def test_the_monotonic_clock_sleeps_until_a_moment_and_not_less() -> None:
    clock: Clock = MonotonicClock()
    moment = clock.now() + 0.002
    await clock.sleep_until(moment)
    assert clock.now() >= moment


async def test_a_moment_in_the_past_gives_others_a_turn() -> None:
    clock = MonotonicClock()
    seen: list[str] = []
    other = asyncio.create_task(_note(seen, "other"))
    await clock.sleep_until(clock.now() - 1)
    seen.append("sleeper")
    await other
    assert seen == ["other", "sleeper"]


def test_the_unix_time_is_of_this_century() -> None:
    assert unix_time_s() > 1_700_000_000


async def test_manual_sleepers_wake_in_order_of_their_moments() -> None:
    clock = ManualClock(now=10.0)
    woken: list[str] = []
    tasks = [
        asyncio.create_task(_sleep(clock, 13.0, woken)),
        asyncio.create_task(_sleep(clock, 11.0, woken)),
        asyncio.create_task(_sleep(clock, 12.0, woken)),
    ]
    await asyncio.sleep(0)
    assert clock.sleeper_count == 3
    clock.advance(2.5)
    await asyncio.gather(*tasks[1:])
    assert woken == ["11.0", "12.0"]
    assert clock.sleeper_count == 1
    clock.advance(0.5)
    await tasks[0]
    assert woken == ["11.0", "12.0", "13.0"]


async def test_elapse_lets_a_periodic_task_see_every_period() -> None:
    clock = ManualClock(now=0.0)
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            await clock.sleep_until(clock.now() + 0.25)
            ticks.append(clock.now())

    task = asyncio.create_task(tick())
    await clock.elapse(1.1)
    assert ticks == [0.25, 0.5, 0.75, 1.0]
    assert clock.now() == 1.1
    task.cancel()


async def test_a_cancelled_sleeper_does_not_hold_up_the_others() -> None:
    clock = ManualClock()
    woken: list[str] = []
    cancelled = asyncio.create_task(_sleep(clock, 1001.0, woken))
    patient = asyncio.create_task(_sleep(clock, 1002.0, woken))
    await asyncio.sleep(0)
    cancelled.cancel()
    await clock.elapse(5)
    await patient
    assert woken == ["1002.0"]


async def _note(seen: list[str], name: str) -> None:
    seen.append(name)


async def _sleep(clock: Clock, moment: float, woken: list[str]) -> None:
    await clock.sleep_until(moment)
    woken.append(str(moment))
