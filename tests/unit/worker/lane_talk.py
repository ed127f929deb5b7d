"""What is said into lanes, and how tests read what comes out of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from lbcore.errors import EngineFailed, LoadBalancerError
from lbcore.generation import (
    Delta,
    Event,
    Failed,
    Finished,
)
from tests.fakes import settle
from worker.lanes import BULKY_BYTES, Lane, Lanes

END = Finished(1, 0, 1)
BROKEN = Failed(EngineFailed("Broken."))
UNLIMITED = 0


def words(*texts: str) -> list[Event]:
    return [Delta(text=text) for text in texts]


def bulky(mark: str, size: int = BULKY_BYTES) -> Delta:
    return Delta(text=mark * size)


def put(lane: Lane, events: Iterable[Event]) -> None:
    for event in events:
        lane.put(event)


async def next_message(lanes: Lanes) -> list[tuple[int, Event]] | None:
    """What the next message holds; None when nothing may leave as things stand."""
    taking = asyncio.ensure_future(lanes.take())
    await settle()
    if taking.done():
        return [(number, event) for number, event, _ in taking.result()]
    taking.cancel()
    return None


async def message(lanes: Lanes) -> list[tuple[int, Event]]:
    """What the next message holds, which must be ready."""
    events = await next_message(lanes)
    assert events is not None, "nothing may leave"
    return events


async def is_silent(lanes: Lanes) -> bool:
    """Whether nothing leaves as things stand."""
    return await next_message(lanes) is None


async def of(lanes: Lanes, call_id: int) -> list[Event]:
    """What the next message holds for one call."""
    return [event for number, event in await message(lanes) if number == call_id]


class Request:
    """What speaks through a lane, as a session does: stopped, it ends in the error and says nothing more."""

    def __init__(self, lane: Lane) -> None:
        self.errors: list[LoadBalancerError] = []
        self.is_over = False
        self._lane = lane
        lane.stop = self.stop

    def say(self, *texts: str) -> None:
        for event in words(*texts):
            if not (self.errors or self.is_over):
                self._lane.put(event)

    def finish(self) -> None:
        self.is_over = True
        if not self.errors:
            self._lane.put(END)

    def stop(self, error: LoadBalancerError) -> None:
        if not (self.errors or self.is_over):
            self.errors.append(error)
            self._lane.put(Failed(error))
