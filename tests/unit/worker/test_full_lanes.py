"""Answers that nobody reads: bounded for each lane and for all of a stream, and counted to the byte."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.errors import Cancelled
from lbcore.generation import Delta, Embedding, Event, Failed, Finished
from tests.unit.worker.lane_talk import (
    BROKEN,
    END,
    UNLIMITED,
    Request,
    is_silent,
    message,
    next_message,
    of,
    put,
    words,
)
from worker import lanes as module
from worker.lanes import BULKY_BYTES, MAX_UNWRITTEN_EVENTS, Lanes


async def test_more_than_a_lane_may_keep_stops_its_request_once_and_no_other(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    slow, other = Request(lanes.open(1, 1)), Request(lanes.open(2, 1))
    other.say("a", "kept")
    slow.say("a", *["x" * 100] * 20)
    [error] = slow.errors
    assert isinstance(error, Cancelled)
    assert other.errors == []
    assert await message(lanes) == [(2, Delta(text="a")), (1, Delta(text="a")), (1, Failed(error))]
    assert [lane.call_id for lane in lanes] == [2]


async def test_what_left_is_no_longer_counted_as_kept(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_STREAM_WAITING_BYTES", 1000)
    request = Request(lanes.open(1, 1))
    request.say("first")
    await message(lanes)
    for _ in range(20):
        request.say("x" * 100, "y" * 100, "z" * 100)
        lanes.make_room(1, 1)
        assert await of(lanes, 1) == words("x" * 100 + "y" * 100 + "z" * 100)
    assert request.errors == []


async def test_a_whole_answer_that_is_kept_back_counts_as_kept(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    request = Request(lanes.open(1, 512, is_whole=True))
    request.say("a", *["x" * 100] * 20)
    [error] = request.errors
    assert isinstance(error, Cancelled)
    assert await of(lanes, 1) == [*words("a"), Failed(error)]


async def test_more_than_a_stream_may_keep_stops_the_request_of_which_most_waits(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STREAM_WAITING_BYTES", 5000)
    little, much, last = (Request(lanes.open(number, 1)) for number in (1, 2, 3))
    for request, count in ((little, 5), (much, 20), (last, 1)):
        request.say("a", *["x" * 100] * count)
    assert not much.errors
    last.say(*["x" * 100] * 10)
    [error] = much.errors
    assert isinstance(error, Cancelled)
    assert little.errors == last.errors == []
    assert await of(lanes, 2) == [*words("a"), Failed(error)]
    lanes.make_room(3, 10)
    assert await of(lanes, 3) == words("x" * 1100)


async def test_the_request_that_speaks_may_be_the_one_of_which_most_waits(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STREAM_WAITING_BYTES", 1000)
    request, other = Request(lanes.open(1, 1)), Request(lanes.open(2, 1))
    other.say("a", "kept")
    request.say("a", *["x" * 100] * 20)
    assert len(request.errors) == 1
    assert other.errors == []
    assert [lane.call_id for lane in lanes] == [2]


async def test_of_an_answer_that_is_complete_the_rest_is_given_up_too(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STREAM_WAITING_BYTES", 5000)
    complete, other = Request(lanes.open(1, 1)), Request(lanes.open(2, 1))
    complete.say("a", *["x" * 100] * 20)
    complete.finish()
    other.say("a", *["y" * 100] * 15)
    assert complete.errors == other.errors == []
    *_, end = await of(lanes, 1)
    assert isinstance(end, Failed)
    assert isinstance(end.error, Cancelled)
    assert [lane.call_id for lane in lanes] == [2]


async def test_what_is_said_after_a_lane_is_gone_is_kept_nowhere(lanes: Lanes) -> None:
    lane = lanes.open(1, 1)
    lane.put(Delta(text="a"))
    lanes.drop(1)
    for event in (*words("b", "x" * BULKY_BYTES), END):
        lane.put(event)
    assert (lane.waiting_bytes, lanes.waiting_bytes) == (0, 0)
    await message(lanes)
    assert await is_silent(lanes)


@pytest.mark.parametrize("room", [UNLIMITED, 2**32])
async def test_of_a_caller_with_great_room_one_message_is_with_the_writer_and_the_rest_is_joined(
    lanes: Lanes, room: int
) -> None:
    request = Request(lanes.open(1, room))
    said = [f"{number} " for number in range(3 * MAX_UNWRITTEN_EVENTS)]
    request.say(*said)
    request.finish()
    assert await of(lanes, 1) == words(*said[:MAX_UNWRITTEN_EVENTS])
    *rest, end = await of(lanes, 1)
    assert len(rest) < MAX_UNWRITTEN_EVENTS // 4
    assert "".join(event.text for event in rest if type(event) is Delta) == "".join(said[MAX_UNWRITTEN_EVENTS:])
    assert end == END


async def test_a_caller_with_great_room_that_does_not_read_is_given_up_like_others(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    request = Request(lanes.open(1, UNLIMITED))
    request.say(*["x" * 100] * (MAX_UNWRITTEN_EVENTS + 20))
    [error] = request.errors
    assert isinstance(error, Cancelled)


async def test_great_room_is_used_to_its_end_and_no_further(lanes: Lanes) -> None:
    room = MAX_UNWRITTEN_EVENTS + 3
    lane = lanes.open(1, room - 2)
    lanes.make_room(1, 2)
    vectors: list[Event] = [Embedding(number, b"") for number in range(room + 5)]
    put(lane, vectors)
    assert [*await of(lanes, 1), *await of(lanes, 1)] == vectors[:room]
    assert await is_silent(lanes)
    lanes.make_room(1, 2 * MAX_UNWRITTEN_EVENTS)
    assert await of(lanes, 1) == vectors[room:]
    put(lane, vectors)
    assert await of(lanes, 1) == vectors[:MAX_UNWRITTEN_EVENTS]


_WINDOW = 4
_GREAT_STEPS = st.tuples(
    st.sampled_from(["say", "say", "say", "take", "take", "finish", "drop"]), st.integers(0, 2), st.integers(1, 9)
)


@given(st.lists(st.integers(0, 3 * _WINDOW), min_size=3, max_size=3), st.lists(_GREAT_STEPS, max_size=80))
def test_whatever_room_a_caller_has_only_so_much_is_with_the_writer_and_all_of_it_arrives(
    rooms: list[int], steps: list[tuple[str, int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_UNWRITTEN_EVENTS", _WINDOW)
        patch.setattr(module, "MAX_EVENTS", _WINDOW + 1)
        asyncio.run(_play_with_great_room(rooms, steps))


async def _play_with_great_room(rooms: list[int], steps: list[tuple[str, int, int]]) -> None:
    lanes = Lanes()
    opened = [lanes.open(number, room) for number, room in enumerate(rooms)]
    left: list[int] = []
    for lane in opened:
        lane.left = lambda lane: left.append(lane.call_id)
    said, came = [0, 0, 0], [0, 0, 0]
    dropped: set[int] = set()
    ended: set[int] = set()

    async def take() -> bool:
        written = {*ended}
        events = await next_message(lanes) or []
        assert {*left} == written | dropped
        for number, event in events:
            if type(event) is Finished:
                ended.add(number)
            else:
                came[number] += 1
        for number in range(3):
            being_written = [one for one, event in events if type(event) is not Finished].count(number)
            ready = [one for one, event, _ in lanes._ready if type(event) is not Finished].count(number)
            assert being_written + ready <= _WINDOW
            assert came[number] <= (rooms[number] or module.UNLIMITED)
        return bool(events)

    for step, number, amount in steps:
        lane = opened[number]
        has_ended = lane.is_gone or END in lane._waiting
        if step == "say" and not has_ended:
            # Vectors are never joined, so that each can be counted.
            put(lane, [Embedding(0, b"")] * amount)
            said[number] += amount
        elif step == "finish" and not has_ended:
            lane.put(END)
        elif step == "drop" and lanes.drop(number) is not None:
            dropped.add(number)
        elif step == "take":
            await take()
    for lane in opened:
        if END not in lane._waiting:
            lane.put(END)
    while await take():
        pass
    rooms[:] = [room and room + 1000 for room in rooms]
    for number in range(3):
        lanes.make_room(number, 1000)
    while await take():
        pass
    assert sorted(left) == [0, 1, 2]
    for number in {0, 1, 2} - dropped:
        assert came[number] == said[number]


_CALLS = 4
_STREAM_BYTES = 3 * BULKY_BYTES
_LANE_BYTES = 2 * BULKY_BYTES
_STEPS = st.tuples(
    st.sampled_from(["say", "say", "say", "room", "take", "take", "finish", "fail", "stop", "drop", "refuse"]),
    st.integers(0, _CALLS - 1),
    st.sampled_from([0, 1, 7, 500, 2000, BULKY_BYTES, _LANE_BYTES]),
)


@given(st.lists(st.booleans(), min_size=_CALLS, max_size=_CALLS), st.lists(_STEPS, max_size=60))
def test_the_total_is_the_sum_of_what_waits_and_never_more_than_may(
    are_whole: list[bool], steps: list[tuple[str, int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_WAITING_BYTES", _LANE_BYTES)
        patch.setattr(module, "MAX_STREAM_WAITING_BYTES", _STREAM_BYTES)
        asyncio.run(_play(are_whole, steps))


async def _play(are_whole: list[bool], steps: list[tuple[str, int, int]]) -> None:
    lanes = Lanes()
    opened = [lanes.open(number, 2, is_whole=is_whole) for number, is_whole in enumerate(are_whole)]
    requests = [Request(lane) for lane in opened]
    for step, number, amount in steps:
        lane, request = opened[number], requests[number]
        match step:
            case "say":
                request.say("x" * amount)
            case "room":
                lanes.make_room(number, 1 + amount % 5)
            case "finish":
                request.finish()
            case "fail":
                lane.put(BROKEN)
            case "stop":
                lane.stop(BROKEN.error)
            case "drop":
                lanes.drop(number)
            case "refuse":
                lanes.refuse(number, BROKEN.error)
            case _:
                await next_message(lanes)
        assert [one.waiting_bytes for one in opened] == [sum(map(module._size, one._waiting)) for one in opened]
        assert lanes.waiting_bytes == sum(one.waiting_bytes for one in lanes) <= _STREAM_BYTES
        assert all(one.waiting_bytes <= _LANE_BYTES for one in lanes)
        assert all(one.waiting_bytes == 0 for one in opened if one.is_gone)
