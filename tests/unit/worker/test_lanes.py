"""The way out of a shared stream: small events at once, large ones in turn, and never more than there is room for."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.errors import InvalidRequest
from lbcore.generation import (
    Delta,
    Embedding,
    Event,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    ToolCallDelta,
)
from tests.fakes import settle
from tests.unit.worker.lane_talk import (
    BROKEN,
    END,
    UNLIMITED,
    Request,
    bulky,
    is_silent,
    message,
    next_message,
    of,
    put,
    words,
)
from worker.lanes import BULKY_BYTES, MAX_EVENTS, TURN_BYTES, Lane, Lanes


async def test_small_events_leave_with_the_next_message_in_the_order_they_came(lanes: Lanes) -> None:
    one, two = lanes.open(1, UNLIMITED), lanes.open(2, UNLIMITED)
    one.put(Started(3))
    two.put(Started(4))
    put(one, words("a", "b"))
    two.put(END)
    one.put(END)
    assert await message(lanes) == [
        (1, Started(3)),
        (2, Started(4)),
        (1, Delta(text="a")),
        (1, Delta(text="b")),
        (2, END),
        (1, END),
    ]


async def test_a_writer_that_waits_is_woken_by_an_event(lanes: Lanes) -> None:
    lane = lanes.open(1, UNLIMITED)
    writer = asyncio.ensure_future(lanes.take())
    await settle()
    lane.put(Delta(text="a"))
    assert await writer == [(1, Delta(text="a"), True)]


async def test_a_lane_without_room_keeps_its_events_and_others_go_on(lanes: Lanes) -> None:
    slow, quick = lanes.open(1, 2), lanes.open(2, UNLIMITED)
    put(slow, words("a", "b", "c"))
    put(quick, words("x", "y", "z"))
    events = await message(lanes)
    assert [event for number, event in events if number == 1] == words("a", "b")
    assert [event for number, event in events if number == 2] == words("x", "y", "z")
    assert await is_silent(lanes)


async def test_room_lets_go_what_waited_said_in_one_piece(lanes: Lanes) -> None:
    lane = lanes.open(1, 1)
    put(lane, [Delta(text=text, token_ids=(number,)) for number, text in enumerate("abcd")])
    assert await of(lanes, 1) == [Delta(text="a", token_ids=(0,))]
    lanes.make_room(1, 1)
    assert await of(lanes, 1) == [Delta(text="bcd", token_ids=(1, 2, 3))]
    assert lane.room == 0


async def test_room_for_a_call_that_is_gone_is_nothing(lanes: Lanes) -> None:
    lanes.make_room(7, 100)
    lanes.open(1, UNLIMITED).put(END)
    lanes.make_room(1, 100)
    assert await message(lanes) == [(1, END)]


async def test_room_given_before_it_is_needed_counts(lanes: Lanes) -> None:
    lane = lanes.open(1, 1)
    lanes.make_room(1, 2)
    put(lane, words("a", "b", "c", "d"))
    assert await of(lanes, 1) == words("a", "b", "c")


@pytest.mark.parametrize(
    "special",
    [
        Delta(text="x", logprobs=(TokenLogprob("x", -1.0, b"x"),)),
        Delta(tool_calls=(ToolCallDelta(0, "call"),)),
        Delta(reasoning="hm"),
        Delta(choice=1, text="x"),
        Started(3),
        Embedding(0, b"\0\0\0\0"),
    ],
    ids=["logprobs", "tool call", "reasoning", "other choice", "start", "vector"],
)
async def test_what_says_more_than_text_is_never_merged(lanes: Lanes, special: Event) -> None:
    lane = lanes.open(1, 1)
    put(lane, [*words("first", "a", "b"), special, *words("c", "d")])
    assert await of(lanes, 1) == words("first")
    lanes.make_room(1, 10)
    assert await of(lanes, 1) == [Delta(text="ab"), special, Delta(text="cd")]


async def test_a_piece_that_ends_its_choice_is_the_last_of_those_merged(lanes: Lanes) -> None:
    lane = lanes.open(1, 1)
    end = Delta(text="x", token_ids=(7,), finish_reason=FinishReason.LENGTH)
    put(lane, [*words("first"), Delta(text="a", token_ids=(6,)), end, *words("c", "d"), END])
    assert await of(lanes, 1) == words("first")
    lanes.make_room(1, 10)
    merged = Delta(text="ax", token_ids=(6, 7), finish_reason=FinishReason.LENGTH)
    assert await of(lanes, 1) == [merged, Delta(text="cd"), END]


async def test_pieces_are_merged_no_further_than_a_bulky_one(lanes: Lanes) -> None:
    lane = lanes.open(1, 1)
    put(lane, [*words("first"), *[Delta(text="x" * 1000) for _ in range(20)]])
    await of(lanes, 1)
    lanes.make_room(1, 100)
    texts = [event.text for event in await of(lanes, 1) if type(event) is Delta]
    assert "".join(texts) == "x" * 20_000
    assert len(texts) > 1
    assert all(len(text) < BULKY_BYTES + 1000 for text in texts)


async def test_tokens_without_text_are_merged_no_further_than_a_bulky_one_either(lanes: Lanes) -> None:
    # As of an engine that holds back half of a character, or of a reader of tokens.
    lane = lanes.open(1, 1)
    put(lane, [*words("first"), *[Delta(token_ids=(number,)) for number in range(20_000)]])
    await of(lanes, 1)
    lanes.make_room(1, 100)
    came = [event.token_ids for event in await of(lanes, 1) if type(event) is Delta]
    assert [token for token_ids in came for token in token_ids] == [*range(20_000)][: sum(map(len, came))]
    assert all(4 * len(token_ids) < 2 * BULKY_BYTES for token_ids in came)


async def test_a_bulky_event_goes_behind_the_small_ones_of_other_lanes(lanes: Lanes) -> None:
    large, small = lanes.open(1, UNLIMITED), lanes.open(2, UNLIMITED)
    large.put(bulky("x"))
    put(small, words("a", "b"))
    assert await message(lanes) == [(2, Delta(text="a")), (2, Delta(text="b")), (1, bulky("x"))]


async def test_small_events_behind_a_bulky_one_of_their_own_lane_stay_behind_it(lanes: Lanes) -> None:
    lane = lanes.open(1, UNLIMITED)
    put(lane, [bulky("x"), *words("a"), END])
    assert await of(lanes, 1) == [bulky("x"), Delta(text="a"), END]


async def test_lanes_with_bulky_events_take_turns(lanes: Lanes) -> None:
    for number in (1, 2, 3):
        put(lanes.open(number, UNLIMITED), [bulky("x"), bulky("y")])
    assert [number for number, _ in await message(lanes)] == [1, 2, 3, 1, 2, 3]


async def test_no_message_holds_more_of_what_waits_than_one_turn_and_small_events_pass_in_between(lanes: Lanes) -> None:
    large, small = lanes.open(1, UNLIMITED), lanes.open(2, UNLIMITED)
    size = TURN_BYTES // 4
    put(large, [bulky("x", size) for _ in range(10)])
    held: list[int] = []
    for turn in range(5):
        small.put(Delta(text=str(turn)))
        events = await message(lanes)
        assert events[0] == (2, Delta(text=str(turn)))
        held.append(sum(len(event.text) for number, event in events if number == 1 and type(event) is Delta))
        if sum(held) == 10 * size:
            break
    assert sum(held) == 10 * size
    assert all(count <= TURN_BYTES for count in held)


async def test_an_event_larger_than_a_turn_has_a_message_of_its_own(lanes: Lanes) -> None:
    put(lanes.open(1, UNLIMITED), [bulky("x", TURN_BYTES * 2)])
    put(lanes.open(2, UNLIMITED), [bulky("y", TURN_BYTES * 2)])
    assert [number for number, _ in await message(lanes)] == [1]
    assert [number for number, _ in await message(lanes)] == [2]


async def test_vectors_are_as_large_as_they_are(lanes: Lanes) -> None:
    vectors, small = lanes.open(1, UNLIMITED), lanes.open(2, UNLIMITED)
    vectors.put(Embedding(0, bytes(BULKY_BYTES)))
    small.put(Delta(text="a"))
    assert [number for number, _ in await message(lanes)] == [2, 1]


async def test_the_end_needs_no_room_but_waits_behind_what_does(lanes: Lanes) -> None:
    ended, waiting = lanes.open(1, 1), lanes.open(2, 1)
    put(ended, [*words("a"), END])
    put(waiting, [*words("a", "b"), END])
    assert await message(lanes) == [(1, Delta(text="a")), (1, END), (2, Delta(text="a"))]
    assert await is_silent(lanes)
    assert (ended.is_gone, waiting.is_gone) == (True, False)
    lanes.make_room(2, 1)
    assert await message(lanes) == [(2, Delta(text="b")), (2, END)]
    assert waiting.is_gone


async def test_an_error_overtakes_what_waits_and_nothing_follows_it(lanes: Lanes) -> None:
    lane = lanes.open(1, 1)
    put(lane, [*words("a", "b", "c"), BROKEN])
    assert await of(lanes, 1) == [*words("a"), BROKEN]
    lanes.make_room(1, 100)
    put(lane, words("d"))
    assert await is_silent(lanes)
    assert lane.is_gone


async def test_an_error_overtakes_what_has_its_turn_too(lanes: Lanes) -> None:
    lane = lanes.open(1, UNLIMITED)
    put(lane, [bulky("x"), BROKEN])
    assert await of(lanes, 1) == [BROKEN]
    assert await is_silent(lanes)


async def test_a_lane_that_was_dropped_lets_nothing_out(lanes: Lanes) -> None:
    lane, other = lanes.open(1, 1), lanes.open(2, UNLIMITED)
    put(lane, words("a", "b"))
    await message(lanes)
    assert lanes.drop(1) is lane
    put(lane, [*words("c"), bulky("x"), END])
    lanes.make_room(1, 100)
    put(other, words("x"))
    assert await message(lanes) == [(2, Delta(text="x"))]
    assert await is_silent(lanes)


async def test_no_message_holds_more_events_than_its_reader_takes_in_one_turn(lanes: Lanes) -> None:
    opened = {number: lanes.open(number, UNLIMITED) for number in range(2 * MAX_EVENTS // 500 + 1)}
    said = [(turn % len(opened), Delta(text=str(turn))) for turn in range(2 * MAX_EVENTS + 1)]
    for number, event in said:
        opened[number].put(event)
    messages = [await message(lanes) for _ in range(3)]
    assert [len(events) for events in messages] == [MAX_EVENTS, MAX_EVENTS, 1]
    assert [event for events in messages for event in events] == said
    assert await is_silent(lanes)


async def test_a_call_that_was_refused_says_nothing_more_and_its_request_is_stopped(lanes: Lanes) -> None:
    request, other = Request(lanes.open(1, 2)), Request(lanes.open(2, UNLIMITED))
    for turn in range(3):
        request.say(f"ready or waiting {turn}")
        other.say(f"{turn}")
    lanes.refuse(1, BROKEN.error)
    assert request.errors == [BROKEN.error]
    assert await message(lanes) == [(2, event) for event in words("0", "1", "2")]
    lanes.make_room(1, 100)
    assert await is_silent(lanes)
    assert [lane.call_id for lane in lanes] == [2]


async def test_a_call_that_was_refused_behind_its_end_takes_nobody_with_it(lanes: Lanes) -> None:
    put(lanes.open(1, UNLIMITED), [*words("a"), END])
    lanes.open(2, UNLIMITED).put(END)
    lanes.refuse(1, BROKEN.error)
    assert await message(lanes) == [(2, END)]


async def test_a_lane_has_left_when_the_message_with_its_end_was_written(lanes: Lanes) -> None:
    left: list[int] = []

    def note(lane: Lane) -> None:
        left.append(lane.call_id)

    for number in range(5):
        lanes.open(number, UNLIMITED).left = note
    one, two, three, four, five = lanes
    one.put(END)
    put(two, [*words(*map(str, range(MAX_EVENTS))), BROKEN])
    put(three, [bulky("x"), END])
    assert (await message(lanes))[0] == (0, END)
    lanes.refuse(3, BROKEN.error)
    lanes.drop(4)
    assert [lane.is_gone for lane in (one, two, three, four, five)] == [True] * 5
    assert left == [4]
    assert await of(lanes, 1) == [Delta(text=str(MAX_EVENTS - 1)), BROKEN]
    assert left == [4, 0, 3]
    assert await is_silent(lanes)
    assert left == [4, 0, 3, 1, 2]
    assert lanes.drop_all() == []
    assert left == [4, 0, 3, 1, 2]


async def test_dropping_what_is_not_there_is_nothing(lanes: Lanes) -> None:
    assert lanes.drop(1) is None


async def test_a_number_can_be_used_again_and_the_old_lane_does_not_speak_for_it(lanes: Lanes) -> None:
    old = lanes.open(1, 1)
    lanes.drop(1)
    new = lanes.open(1, UNLIMITED)
    new.put(Delta(text="new"))
    put(old, [*words("old"), bulky("o"), END, BROKEN])
    assert await message(lanes) == [(1, Delta(text="new"))]
    assert await is_silent(lanes)
    assert [*lanes] == [new]


async def test_a_number_in_use_is_refused(lanes: Lanes) -> None:
    lane = lanes.open(1, UNLIMITED)
    with pytest.raises(InvalidRequest):
        lanes.open(1, UNLIMITED)
    lane.put(END)
    assert await message(lanes) == [(1, END)]


async def test_all_lanes_can_be_walked_while_they_end(lanes: Lanes) -> None:
    for number in range(3):
        lanes.open(number, UNLIMITED)
    for lane in lanes:
        lane.put(BROKEN)
    assert [*lanes] == []


async def test_a_stream_without_callers_closes_when_its_last_lane_has_ended(lanes: Lanes) -> None:
    one, two = lanes.open(1, UNLIMITED), lanes.open(2, 1)
    lanes.half_close()
    put(one, [*words("a"), END])
    put(two, [*words("a", "b"), END])
    assert await message(lanes) == [(1, Delta(text="a")), (1, END), (2, Delta(text="a"))]
    assert await is_silent(lanes)
    lanes.make_room(2, 1)
    assert await message(lanes) == [(2, Delta(text="b")), (2, END)]
    assert await message(lanes) == []


async def test_a_stream_without_callers_closes_when_its_last_lane_was_dropped(lanes: Lanes) -> None:
    lanes.open(1, UNLIMITED)
    lanes.half_close()
    assert await is_silent(lanes)
    lanes.drop(1)
    assert await message(lanes) == []


async def test_a_stream_that_never_had_a_call_closes_at_once(lanes: Lanes) -> None:
    lanes.half_close()
    assert await message(lanes) == []


async def test_closing_wakes_the_writer(lanes: Lanes) -> None:
    writer = asyncio.ensure_future(lanes.take())
    await settle()
    lanes.close()
    assert await writer == []


_LANE = st.integers(0, 3)
_SIZES = st.sampled_from([0, 1, 7, 500, BULKY_BYTES, TURN_BYTES])
_ROOM = st.integers(1, 6)
_STEPS = st.one_of(
    st.tuples(st.just("put"), _LANE, _SIZES),
    st.tuples(st.just("put"), _LANE, st.integers(0, 9)),
    st.tuples(st.just("room"), _LANE, _ROOM),
    st.tuples(st.just("take"), st.just(0), st.just(0)),
    st.tuples(st.just("drop"), _LANE, st.just(0)),
)


class Book:
    """What one lane was given and what came out of it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.text = ""
        self.tokens: list[int] = []
        self.ends: list[int] = []
        """Where in the text a choice ended."""
        self.taken_text = ""
        self.taken_tokens: list[int] = []
        self.taken_ends: list[int] = []
        self.taken_events = 0
        self.is_dropped = False
        self.is_over = False

    def give(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += delta.token_ids
        if delta.finish_reason:
            self.ends.append(len(self.text))

    def take(self, event: Event) -> None:
        assert not self.is_over, "something came behind the end"
        if type(event) is Finished:
            self.is_over = True
            return
        assert type(event) is Delta
        self.taken_text += event.text
        self.taken_tokens += event.token_ids
        self.taken_events += 1
        if event.finish_reason:
            self.taken_ends.append(len(self.taken_text))

    def check(self) -> None:
        assert self.text.startswith(self.taken_text)
        assert self.tokens[: len(self.taken_tokens)] == self.taken_tokens
        assert self.ends[: len(self.taken_ends)] == self.taken_ends
        assert self.taken_events <= self.room


@given(
    st.lists(st.tuples(_ROOM, st.booleans()), min_size=4, max_size=4),
    st.lists(_STEPS, max_size=60),
)
def test_whatever_happens_every_lane_says_its_part_in_order_and_keeps_to_its_room(
    kinds: list[tuple[int, bool]], steps: list[tuple[str, int, int]]
) -> None:
    asyncio.run(_play(kinds, steps))


async def _play(kinds: list[tuple[int, bool]], steps: list[tuple[str, int, int]]) -> None:
    lanes = Lanes()
    books = [Book(room) for room, _ in kinds]
    opened = [lanes.open(number, room, is_whole=is_whole) for number, (room, is_whole) in enumerate(kinds)]
    serial = 0

    def note(events: list[tuple[int, Event]]) -> None:
        for number, event in events:
            books[number].take(event)
        for book in books:
            book.check()

    def say(number: int, text: str, finish_reason: FinishReason | None = None) -> None:
        nonlocal serial
        serial += 1
        delta = Delta(text=text, token_ids=(serial,), finish_reason=finish_reason)
        if not books[number].is_dropped:
            books[number].give(delta)
        opened[number].put(delta)

    for kind, number, amount in steps:
        book = books[number]
        match kind:
            case "put":
                say(number, chr(ord("a") + serial % 26) * amount, FinishReason.STOP if amount == 3 else None)
            case "room":
                book.room += amount
                lanes.make_room(number, amount)
            case "drop":
                # What is with the writer already may still leave; what waits may not.
                book.is_dropped = True
                lanes.drop(number)
            case _:
                note(await next_message(lanes) or [])
    for number, book in enumerate(books):
        say(number, "!", FinishReason.LENGTH)
        opened[number].put(END)
        book.room += 1000
        lanes.make_room(number, 1000)
    while events := await next_message(lanes):
        note(events)
    for book in books:
        if not book.is_dropped:
            assert (book.taken_text, book.taken_tokens) == (book.text, book.tokens)
            assert book.taken_ends == book.ends
            assert book.taken_ends[-1] == len(book.text)
            assert book.is_over
    assert [*lanes] == []
