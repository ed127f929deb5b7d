"""Batching without timers: items wait until the previous write is done, then all that wait go in one message."""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

MAX_BATCH_BYTES = 16 * 1024 * 1024
"""More than this travels as several messages: one holds up all behind it, and past gRPC's limit it ends the stream."""

MAX_BATCH_ITEMS = 256
"""More than this travels as several messages too: one is read in a single turn of its reader's event loop, and at 30
microseconds for a route so many keep all else at the scheduler waiting for 8 milliseconds."""


class Source(Protocol[T]):
    """What a writer writes from."""

    async def take(self) -> list[T]:
        """Waits for items and returns those that go into the next message; an empty list means closed."""

    def close(self) -> None:
        """Nothing more will come: `take` hands out what is left and then empty lists."""


class Bell:
    """What one task sleeps on until somebody rings; ringing twice is ringing once."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wakes the sleeper, if there is one."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def sleep(self) -> None:
        """Returns after the next ring, when everything else that was ready had its turn.

        In an idle process that is at once; in a busy one much more comes to be written meanwhile, and goes along.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        await asyncio.sleep(0)


class Batches(Generic[T]):
    """What is to be written to one stream, in messages of a size that nobody has to wait behind for long."""

    __slots__ = ("_bytes", "_items", "_sizes")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._sizes: list[int] = []
        self._bytes = 0

    def put(self, item: T, size: int = 0) -> None:
        """Adds an item of about so many bytes."""
        self._items.append(item)
        self._sizes.append(size)
        self._bytes += size

    def __len__(self) -> int:
        return len(self._items)

    def next(self) -> list[T]:
        """Takes all that fit into one message, oldest first; an empty list when there is nothing."""
        items, sizes = self._items, self._sizes
        if self._bytes <= MAX_BATCH_BYTES and len(items) <= MAX_BATCH_ITEMS:
            self._items, self._sizes, self._bytes = [], [], 0
            return items
        total = sizes[0]
        count = 1
        most = min(len(sizes), MAX_BATCH_ITEMS)
        while count < most and total + sizes[count] <= MAX_BATCH_BYTES:
            total += sizes[count]
            count += 1
        self._items, self._sizes = items[count:], sizes[count:]
        self._bytes -= total
        return items[:count]


class Outbox(Generic[T]):
    """What is to be written to one stream, for one writer. Alone, an item leaves at once; under load, batches form."""

    __slots__ = ("_batches", "_bell", "_closed")

    def __init__(self) -> None:
        self._batches: Batches[T] = Batches()
        self._bell = Bell()
        self._closed = False

    def put(self, item: T, size: int = 0) -> None:
        """Adds an item of about so many bytes; after `close` it is dropped."""
        if not self._closed:
            self._batches.put(item, size)
            self._bell.ring()

    def close(self) -> None:
        """Nothing more will come: `take` hands out what is left and then empty lists."""
        self._closed = True
        self._bell.ring()

    async def take(self) -> list[T]:
        """Waits for an item and returns all that fit into one message, oldest first; an empty list means closed."""
        while not self._batches and not self._closed:
            await self._bell.sleep()
        return self._batches.next()
