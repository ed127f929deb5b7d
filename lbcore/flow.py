"""How the events of a request reach whoever takes them: pushed in the turn they arrive in, and paused on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from lbcore.generation import Event

ROOM = 512
"""Events of one request that may be on their way, or kept back on this side, before the worker keeps the rest. A token
is an event: what a client reads too slowly stays at the worker after five hundred tokens."""


class Flow(Protocol):
    """What hands over events, as seen by who takes them."""

    def pause(self) -> None:
        """Keeps back what arrives from now on; when there is no more room for it, the worker does."""

    def resume(self) -> None:
        """Hands over what was kept back, and whatever comes from now on."""


Take = Callable[[list[Event], Flow], None]
"""Takes a batch of events of one request, in order and never empty. Must not raise."""


class Inbox:
    """Takes events for a reader that asks for them in its own time; what it does not ask for stays where it is."""

    __slots__ = ("_events", "_flow", "_is_closed", "_waiter")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._flow: Flow | None = None
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None

    def take(self, events: list[Event], flow: Flow) -> None:
        """A `Take`."""
        self._events += events
        self._flow = flow
        flow.pause()
        self._wake()

    def close(self) -> None:
        """Nothing more will come."""
        self._is_closed = True
        self._wake()

    async def events(self) -> list[Event]:
        """Waits for news and returns all there is, in order; an empty list means that nothing more will come."""
        while not self._events and not self._is_closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.resume()
        return events

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
