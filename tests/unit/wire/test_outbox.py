"""Batching without timers: alone an item leaves at once, under load they leave together, and none is lost."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.wire import outbox as module
from lbcore.wire.outbox import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, Bell, Outbox
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


async def test_more_than_a_message_holds_leaves_in_several_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH_BYTES", 1000)
    outbox: Outbox[int] = Outbox()
    for number, size in enumerate([10, 400, 400, 400, 3000, 10, 990], start=1):
        outbox.put(number, size)
    assert [await outbox.take() for _ in range(4)] == [[1, 2, 3], [4], [5], [6, 7]]


async def test_what_is_larger_than_a_message_should_be_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH_BYTES", 1000)
    outbox: Outbox[str] = Outbox()
    outbox.put("huge", 5000)
    outbox.put("small", 1)
    assert [await outbox.take(), await outbox.take()] == [["huge"], ["small"]]


async def test_more_items_than_their_reader_takes_in_one_turn_leave_in_several_messages_in_order() -> None:
    outbox: Outbox[int] = Outbox()
    for number in range(2 * MAX_BATCH_ITEMS + 1):
        outbox.put(number)
    batches = [await outbox.take() for _ in range(3)]
    assert [len(batch) for batch in batches] == [MAX_BATCH_ITEMS, MAX_BATCH_ITEMS, 1]
    assert [number for batch in batches for number in batch] == [*range(2 * MAX_BATCH_ITEMS + 1)]


@given(st.lists(st.integers(0, MAX_BATCH_BYTES * 2), max_size=30))
def test_whatever_the_sizes_all_leaves_in_order_and_no_message_is_too_large(sizes: list[int]) -> None:
    async def taken() -> list[list[tuple[int, int]]]:
        outbox: Outbox[tuple[int, int]] = Outbox()
        for item in enumerate(sizes):
            outbox.put(item, item[1])
        outbox.close()
        batches = []
        while batch := await outbox.take():
            batches.append(batch)
        return batches

    batches = asyncio.run(taken())
    assert [item for batch in batches for item in batch] == [*enumerate(sizes)]
    assert all(len(batch) == 1 or sum(size for _, size in batch) <= MAX_BATCH_BYTES for batch in batches)
    # And none is cut without need.
    for first, second in itertools.pairwise(batches):
        assert sum(size for _, size in first) + second[0][1] > MAX_BATCH_BYTES


async def test_a_bell_wakes_its_sleeper_once_however_often_it_rings() -> None:
    bell = Bell()
    sleeper = asyncio.ensure_future(bell.sleep())
    await settle()
    assert not sleeper.done()
    bell.ring()
    bell.ring()
    await sleeper
    again = asyncio.ensure_future(bell.sleep())
    await settle()
    assert not again.done()
    bell.ring()
    await again


async def test_a_bell_that_rings_with_nobody_asleep_is_not_heard_later() -> None:
    bell = Bell()
    bell.ring()
    sleeper = asyncio.ensure_future(bell.sleep())
    await settle()
    assert not sleeper.done()
    sleeper.cancel()


async def test_who_was_woken_lets_all_that_is_ready_go_first() -> None:
    bell = Bell()
    order: list[str] = []

    async def sleep() -> None:
        await bell.sleep()
        order.append("sleeper")

    sleeper = asyncio.ensure_future(sleep())
    await settle()
    bell.ring()
    # What became ready in the same turn, and what that made ready.
    loop = asyncio.get_running_loop()
    loop.call_soon(order.append, "one")
    loop.call_soon(order.append, "two")
    await sleeper
    assert order == ["one", "two", "sleeper"]
