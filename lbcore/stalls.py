"""Finds answers that have stopped coming: their worker is there, says nothing and will say nothing."""

from __future__ import annotations

import asyncio
from typing import Protocol

from lbcore.clock import Clock

LOOK_S = 1.0
"""Between two looks at all answers under way. What is heard of them meanwhile costs no look at a clock."""

TPOT_FACTOR = 20.0
"""A gap so many times the answer's own time per token is no slow moment any more, where that is longer than the least
gap that counts."""


NEW = 32
"""What comes first of an answer is noted as it comes: a look a second later cannot tell the time of two tokens."""


class Progress:
    """What is known of how one answer comes."""

    __slots__ = ("_beats", "_began_at", "_moved_at", "_stall_s")

    def __init__(self, beats: int, now: float, stall_s: float) -> None:
        """The first token came `now`. `stall_s`: the least gap that counts."""
        self._stall_s = stall_s
        self._beats = beats
        self._began_at = self._moved_at = now

    def moved(self, beats: int, now: float) -> None:
        """Something has come, of which `beats` came so far. Need not be told of more than the first `NEW`."""
        self._beats = beats
        self._moved_at = now

    def is_stalled(self, beats: int, is_held: bool, tokens: int, now: float) -> bool:
        """Whether nothing has come for too long. `beats` grows with whatever comes; `is_held` says that it is this side
        that takes nothing."""
        if beats != self._beats or is_held:
            self.moved(beats, now)
            return False
        tpot_s = (self._moved_at - self._began_at) / max(1, tokens - 1)
        return now - self._moved_at > max(self._stall_s, TPOT_FACTOR * tpot_s)


class Watched(Protocol):
    """An answer under way."""

    def look(self, now: float) -> None:
        """Does what is to be done if it has stalled."""


class StallWatch:
    """Looks at all answers under way, on one timer that runs only while there are any."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watched: dict[Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        """Looks at it from now on."""
        self._watched[watched] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def drop(self, watched: Watched) -> None:
        """Looks at it no more; nothing happens where it was not looked at."""
        self._watched.pop(watched, None)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.now()
        for watched in [*self._watched]:
            # One that has stalled may bring the end of another.
            if watched in self._watched:
                watched.look(now)
        if self._watched and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
