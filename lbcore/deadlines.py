"""Deadlines of many requests on few timers of the event loop."""

from __future__ import annotations

import asyncio
from typing import Protocol

RESOLUTION_S = 0.25
"""Deadlines that are far away share a timer with all others in the same quarter of a second, and expire at its end."""

FAR_S = 5.0
"""What is at least this far away may be late by `RESOLUTION_S`; nearer deadlines have timers of their own."""


class Expiring(Protocol):
    """Something that has a deadline."""

    def expire(self) -> None:
        """Its time is over."""


class Deadlines:
    """Ends what takes too long, never early. A request costs a dictionary's entry here, where the event loop's own
    timers cost a heap that keeps cancelled ones until their time has come."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: dict[int, dict[Expiring, None]] = {}
        self._slot_of: dict[Expiring, dict[Expiring, None]] = {}
        self._timers: dict[Expiring, asyncio.TimerHandle] = {}

    def add(self, expiring: Expiring, seconds: float) -> None:
        """Expires something after so many seconds, unless it is dropped before. It has one deadline at a time."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        if seconds < FAR_S:
            self._timers[expiring] = loop.call_later(seconds, self._expire_one, expiring)
            return
        number = int((loop.time() + seconds) / RESOLUTION_S) + 1
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            loop.call_at(number * RESOLUTION_S, self._expire_all, number)
        slot[expiring] = None
        self._slot_of[expiring] = slot

    def drop(self, expiring: Expiring) -> None:
        """Calls a deadline off; does nothing where there is none any more."""
        slot = self._slot_of.pop(expiring, None)
        if slot is not None:
            del slot[expiring]
            return
        timer = self._timers.pop(expiring, None)
        if timer is not None:
            timer.cancel()

    def _expire_one(self, expiring: Expiring) -> None:
        del self._timers[expiring]
        expiring.expire()

    def _expire_all(self, number: int) -> None:
        slot = self._slots.pop(number)
        while slot:
            # One that expires may call off another.
            expiring, _ = slot.popitem()
            del self._slot_of[expiring]
            try:
                expiring.expire()
            except Exception as error:
                # As if each had a timer of its own: one that raises takes no other with it.
                context = {"message": "Exception in a deadline's end", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)
