"""Batching without timers: alone an item leaves at once, under load they leave together, and none is lost."""

from __future__ import annotations

import asyncio

from lbcore.wire.outbox import Outbox
from tests.fakes import settle


async def test_a_waiting_writer_gets_an_item_at_once() -> None:
    outbox: Outbox[int] = Outbox()
    writer = asyncio.create_task(outbox.take())
    await settle()
    outbox.put(1)
    assert await writer == [1]


async def test_what_came_while_the_writer_was_busy_leaves_together_in_order() -> None:
    outbox: Outbox[int] = Outbox()
    for number in range(100):
        outbox.put(number)
    assert await outbox.take() == list(range(100))


async def test_what_comes_between_the_wake_up_and_the_writer_goes_with_it() -> None:
    outbox: Outbox[int] = Outbox()
    writer = asyncio.create_task(outbox.take())
    await settle()
    outbox.put(1)
    outbox.put(2)
    assert await writer == [1, 2]


async def test_closing_lets_out_what_is_left_and_then_empty_lists() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.put(1)
    outbox.close()
    assert [await outbox.take() for _ in range(3)] == [[1], [], []]


async def test_closing_wakes_a_waiting_writer() -> None:
    outbox: Outbox[int] = Outbox()
    writer = asyncio.create_task(outbox.take())
    await settle()
    outbox.close()
    assert await writer == []


async def test_what_comes_after_the_end_is_dropped() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.close()
    outbox.put(1)
    assert await outbox.take() == []


async def test_a_writer_that_gives_up_leaves_the_items_to_the_next() -> None:
    outbox: Outbox[int] = Outbox()
    writer = asyncio.create_task(outbox.take())
    await settle()
    outbox.put(1)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    assert await outbox.take() == [1]
