"""The inbox between what pushes events and a reader that asks for them."""

from __future__ import annotations

import asyncio

from lbcore.flow import Inbox
from lbcore.generation import Delta, Event, Finished
from tests.fakes import settle

ONE, TWO, END = Delta(text="one"), Delta(text="two"), Finished(1, 0, 2)


class FakeFlow:
    """A flow that notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


async def test_a_reader_gets_all_there_is_in_order() -> None:
    inbox, flow = Inbox(), FakeFlow()
    inbox.take([ONE], flow)
    inbox.take([TWO, END], flow)
    assert await inbox.events() == [ONE, TWO, END]


async def test_a_reader_that_waits_is_woken() -> None:
    inbox = Inbox()
    reading = asyncio.ensure_future(inbox.events())
    await settle()
    assert not reading.done()
    inbox.take([ONE], FakeFlow())
    assert await reading == [ONE]


async def test_what_is_not_asked_for_stays_where_it_is() -> None:
    inbox, flow = Inbox(), FakeFlow()
    inbox.take([ONE], flow)
    assert flow.told == ["pause"]
    await inbox.events()
    assert flow.told == ["pause", "resume"]


async def test_what_is_handed_over_on_resuming_waits_for_the_next_question() -> None:
    inbox = Inbox()
    rest: list[list[Event]] = [[TWO], [END]]

    class Eager(FakeFlow):
        def resume(self) -> None:
            if rest:
                inbox.take(rest.pop(0), self)

    inbox.take([ONE], Eager())
    assert [await inbox.events() for _ in range(3)] == [[ONE], [TWO], [END]]


async def test_a_closed_inbox_hands_out_what_is_left_and_then_nothing() -> None:
    inbox = Inbox()
    inbox.take([ONE], FakeFlow())
    inbox.close()
    assert [await inbox.events() for _ in range(3)] == [[ONE], [], []]


async def test_closing_wakes_a_reader() -> None:
    inbox = Inbox()
    reading = asyncio.ensure_future(inbox.events())
    await settle()
    inbox.close()
    assert await reading == []


async def test_a_reader_that_gives_up_leaves_the_events_to_the_next() -> None:
    inbox = Inbox()
    reading = asyncio.ensure_future(inbox.events())
    await settle()
    inbox.take([ONE], FakeFlow())
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await inbox.events() == [ONE]
