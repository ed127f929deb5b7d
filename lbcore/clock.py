"""The clock: the only room that reads time. Everyone else is handed a `Clock`, or simply the time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds, and a way to wait for them. The zero means nothing; only differences do."""

    def now(self) -> float:
        """The time in seconds; never goes back."""

    async def sleep_until(self, t: float) -> None:
        """Returns once `now() >= t`; when that is so already, other tasks get one turn first."""


class MonotonicClock:
    """The operating system's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, t: float) -> None:
        # An event loop may fire a timer one clock tick early, so one sleep is not enough.
        while (remaining_s := t - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(remaining_s)
        await asyncio.sleep(0)


def unix_time_s() -> float:
    """Seconds since 1970, for stamps that people read. It may jump; nothing is ordered or timed by it."""
    return time.time()
