"""Deadlines: never early, late by no more than they may be, and none for what was called off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.deadlines import FAR_S, RESOLUTION_S, Deadlines
from tests.fakes import settle


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when it is told; what is due then runs."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self._time = now
        # asyncio lets timers fire this much early, and needs it to be something.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._time

    async def pass_until(self, t: float) -> None:
        """Goes from timer to timer, as time does."""
        await settle(3)
        while (due := self._next()) is not None and due <= t:
            self._time = max(self._time, due)
            await settle(3)
        self._time = t
        await settle(3)

    def timer_count(self) -> int:
        """Timers that would still fire."""
        return sum(not timer.cancelled() for timer in self._scheduled)  # type: ignore[attr-defined]

    def _next(self) -> float | None:
        return min((timer.when() for timer in self._scheduled if not timer.cancelled()), default=None)  # type: ignore[attr-defined]


class Thing:
    """Something that notes when its time was over."""

    def __init__(self, loop: TimedLoop, then: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self._then = then
        self.expired: list[float] = []

    def expire(self) -> None:
        self.expired.append(self._loop.time())
        if self._then is not None:
            self._then()


START = 1000.1
"""No multiple of the resolution."""


def timed(test: Callable[[TimedLoop], Awaitable[None]], start: float = START) -> None:
    """Runs a test in a loop of its own."""
    loop = TimedLoop(start)
    try:
        loop.run_until_complete(test(loop))
    finally:
        loop.close()


def test_near_deadlines_are_exact() -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        things = {seconds: Thing(loop) for seconds in (0.0, 0.001, 1.0, FAR_S - 0.001)}
        for seconds, thing in things.items():
            deadlines.add(thing, seconds)
        await loop.pass_until(START + FAR_S)
        assert {seconds: thing.expired for seconds, thing in things.items()} == {
            seconds: [START + seconds] for seconds in things
        }

    timed(scene)


@settings(max_examples=50)
@given(
    start=st.floats(0, 1e6),
    delays=st.lists(st.floats(FAR_S, 1000.0), min_size=1, max_size=20),
)
def test_far_deadlines_are_never_early_and_at_most_a_resolution_late(start: float, delays: list[float]) -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        things = [Thing(loop) for _ in delays]
        for thing, delay in zip(things, delays, strict=True):
            deadlines.add(thing, delay)
        await loop.pass_until(start + 1001)
        for thing, delay in zip(things, delays, strict=True):
            [at] = thing.expired
            assert start + delay <= at <= start + delay + RESOLUTION_S
        assert loop.timer_count() == 0

    timed(scene, start)


def test_far_deadlines_of_one_moment_share_a_timer() -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        for _ in range(1000):
            deadlines.add(Thing(loop), 600.0)
        assert loop.timer_count() == 1

    timed(scene)


@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["near", "far"])
def test_a_deadline_that_was_called_off_does_not_come(seconds: float) -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        dropped, kept = Thing(loop), Thing(loop)
        deadlines.add(dropped, seconds)
        deadlines.add(kept, seconds)
        deadlines.drop(dropped)
        await loop.pass_until(START + 100)
        assert dropped.expired == []
        assert len(kept.expired) == 1

    timed(scene)


@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["near", "far"])
def test_a_deadline_that_has_come_can_still_be_called_off(seconds: float) -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        thing = Thing(loop)
        deadlines.drop(thing)
        deadlines.add(thing, seconds)
        await loop.pass_until(START + 100)
        deadlines.drop(thing)
        assert len(thing.expired) == 1

    timed(scene)


@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["near", "far"])
def test_what_expires_may_call_its_own_deadline_off_as_who_ends_does(seconds: float) -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        things: list[Thing] = []
        things.append(Thing(loop, lambda: deadlines.drop(things[0])))
        deadlines.add(things[0], seconds)
        await loop.pass_until(START + 100)
        assert len(things[0].expired) == 1

    timed(scene)


@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["near", "far"])
def test_one_that_expires_may_call_off_another_of_the_same_moment(seconds: float) -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        things: list[Thing] = []

        def call_off_all() -> None:
            for thing in things:
                deadlines.drop(thing)

        things += [Thing(loop, call_off_all) for _ in range(3)]
        for thing in things:
            deadlines.add(thing, seconds)
        await loop.pass_until(START + 100)
        assert sum(len(thing.expired) for thing in things) == 1

    timed(scene)


@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["near", "far"])
def test_what_expired_may_have_another_deadline(seconds: float) -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        things: list[Thing] = []

        def once_more() -> None:
            if len(things[0].expired) < 3:
                deadlines.add(things[0], seconds)

        things.append(Thing(loop, once_more))
        deadlines.add(things[0], seconds)
        await loop.pass_until(START + 500)
        first, second, third = things[0].expired
        assert second - first >= seconds
        assert third - second >= seconds

    timed(scene)


@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["near", "far"])
def test_one_that_raises_is_heard_and_the_others_of_its_moment_expire_all_the_same(seconds: float) -> None:
    async def scene(loop: TimedLoop) -> None:
        heard: list[BaseException] = []
        loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))
        deadlines = Deadlines()
        error = RuntimeError("Broken.")

        def fail() -> None:
            raise error

        things = [Thing(loop), Thing(loop, fail), Thing(loop)]
        for thing in things:
            deadlines.add(thing, seconds)
        await loop.pass_until(START + 100)
        assert [len(thing.expired) for thing in things] == [1, 1, 1]
        assert heard == [error]

    timed(scene)


def test_what_was_called_off_may_have_another_deadline_of_the_other_kind() -> None:
    async def scene(loop: TimedLoop) -> None:
        deadlines = Deadlines()
        thing = Thing(loop)
        deadlines.add(thing, 60.0)
        deadlines.drop(thing)
        deadlines.add(thing, 1.0)
        await loop.pass_until(START + 100)
        assert thing.expired == [START + 1.0]

    timed(scene)
