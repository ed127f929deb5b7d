"""Batching without timers: items wait until the previous write is done, then all that wait go in one message."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """What is to be written to one stream, for one writer. Alone, an item leaves at once; under load, batches form."""

    __slots__ = ("_closed", "_items", "_waiter")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, item: T) -> None:
        """Adds an item; after `close` it is dropped."""
        if self._closed:
            return
        self._items.append(item)
        self._wake()

    def close(self) -> None:
        """Nothing more will come: `take` hands out what is left and then empty lists."""
        self._closed = True
        self._wake()

    async def take(self) -> list[T]:
        """Waits for an item and returns all there are, oldest first; an empty list means closed."""
        while not self._items and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
