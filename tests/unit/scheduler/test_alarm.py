"""A sleep with two ends: a moment of the clock, or a ring; whichever is first, and nothing left behind."""

from __future__ import annotations

import asyncio

from lbcore.scheduler.alarm import Alarm
from tests.fakes import ManualClock, settle


async def test_a_sleeper_wakes_at_its_moment_and_not_before() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(Alarm(clock).sleep_until(clock.now() + 5.0))
    await clock.elapse(4.9)
    assert not sleeping.done()
    await clock.elapse(0.1)
    assert sleeping.done()


async def test_a_ring_wakes_a_sleeper_before_its_moment_and_leaves_no_timer_behind() -> None:
    clock = ManualClock()
    alarm = Alarm(clock)
    sleeping = asyncio.ensure_future(alarm.sleep_until(clock.now() + 5.0))
    await settle()
    alarm.ring()
    await settle()
    assert sleeping.done()
    assert clock.sleeper_count == 0


async def test_without_a_moment_only_a_ring_wakes() -> None:
    clock = ManualClock()
    alarm = Alarm(clock)
    sleeping = asyncio.ensure_future(alarm.sleep_until(None))
    await clock.elapse(1e6)
    assert not sleeping.done()
    alarm.ring()
    await settle()
    assert sleeping.done()


async def test_a_ring_while_nobody_sleeps_ends_the_next_sleep_and_no_other() -> None:
    clock = ManualClock()
    alarm = Alarm(clock)
    alarm.ring()
    alarm.ring()
    await alarm.sleep_until(None)
    sleeping = asyncio.ensure_future(alarm.sleep_until(None))
    await settle()
    assert not sleeping.done()
    sleeping.cancel()


async def test_a_timer_that_was_called_off_wakes_nobody() -> None:
    clock = ManualClock()
    alarm = Alarm(clock)
    for _ in range(3):
        sleeping = asyncio.ensure_future(alarm.sleep_until(clock.now() + 5.0))
        await settle()
        assert not sleeping.done()
        alarm.ring()
        await settle()
        assert sleeping.done()


async def test_a_moment_that_is_over_ends_the_sleep_at_once() -> None:
    clock = ManualClock()
    async with asyncio.timeout(5):
        await Alarm(clock).sleep_until(clock.now() - 1.0)
