"""Answers that nobody reads: bounded for each lane and for all of a stream, and counted to the byte."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.errors import Cancelled
from lbcore.generation import Delta, Failed
from tests.unit.worker.lane_talk import (
    BROKEN,
    END,
    Request,
    is_silent,
    message,
    next_message,
    of,
    words,
)
from worker import lanes as module
from worker.lanes import BULKY_BYTES, Lanes


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
