"""A sleep that ends at a moment of the clock, or earlier when somebody rings."""

from __future__ import annotations

import asyncio

from lbcore.clock import Clock


class Alarm:
    """For one sleeper. A ring while nobody sleeps is not lost: the next sleep ends at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wakes the sleeper. Ringing twice is ringing once."""
        self._rung.set()

    async def sleep_until(self, t: float | None) -> None:
        """Returns once `now() >= t` or somebody rang; with None only the latter."""
        timer: asyncio.Task[None] | None = None
        if t is not None:
            timer = asyncio.get_running_loop().create_task(self._clock.sleep_until(t))
            timer.add_done_callback(self._elapsed)
        try:
            await self._rung.wait()
        finally:
            self._rung.clear()
            if timer is not None:
                timer.cancel()

    def _elapsed(self, timer: asyncio.Task[None]) -> None:
        # One that was called off ends as well, and must not wake whoever sleeps next.
        if not timer.cancelled():
            self._rung.set()
