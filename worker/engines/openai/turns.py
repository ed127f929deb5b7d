"""Who waits, and who is next: by priority, then by age. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
Turn = tuple[int, int]


class Turns(Generic[T]):
    """A queue that anyone can leave. Its memory stays within twice of what waits."""

    def __init__(self) -> None:
        self._heap: list[Turn] = []
        self._waiting: dict[Turn, T] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter([*self._waiting.values()])

    def draw(self, priority: int) -> Turn:
        """A place in the queue; of equal priorities the one that was drawn first goes first."""
        self._serial += 1
        return (-priority, self._serial)

    def join(self, turn: Turn, item: T) -> None:
        """Lets `item` wait at its place, which it may take again after it had left."""
        self._waiting[turn] = item
        heapq.heappush(self._heap, turn)

    def leave(self, turn: Turn) -> bool:
        """Whether somebody waited at that place, who does so no more."""
        if self._waiting.pop(turn, None) is None:
            return False
        if len(self._heap) > 2 * len(self._waiting):
            self._heap = [*self._waiting]
            heapq.heapify(self._heap)
        return True

    def first(self) -> T | None:
        """Whose turn it is."""
        while self._heap:
            item = self._waiting.get(self._heap[0])
            if item is not None:
                return item
            heapq.heappop(self._heap)
        return None
