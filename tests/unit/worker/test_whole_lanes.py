"""Lanes of answers that are read as a whole: the first token at once, the others joined, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from lbcore.generation import (
    Delta,
    Embedding,
    Event,
    FinishReason,
    Started,
    TokenLogprob,
    ToolCallDelta,
)
from tests.unit.worker.lane_talk import (
    BROKEN,
    END,
    UNLIMITED,
    is_silent,
    message,
    next_message,
    of,
    put,
    words,
)
from worker.lanes import BULKY_BYTES, Lane, Lanes


@pytest.fixture
def lane(lanes: Lanes) -> Lane:
    """That of a caller which reads its answer as a whole."""
    return lanes.open(1, 512, is_whole=True)


def tokens(count: int, choice: int = 0) -> list[Delta]:
    return [Delta(choice=choice, text=f"{number} ", token_ids=(number,)) for number in range(count)]


def whole_text(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if type(event) is Delta)


async def test_of_a_whole_answer_the_first_token_leaves_at_once_and_the_others_joined_with_the_end(
    lanes: Lanes, lane: Lane
) -> None:
    first, *others = tokens(20)
    put(lane, [Started(3), first])
    assert await message(lanes) == [(1, Started(3)), (1, first)]
    for token in others:
        lane.put(token)
        assert await is_silent(lanes)
    put(lane, [Delta(text="!", finish_reason=FinishReason.STOP), END])
    rest = Delta(text=whole_text(others) + "!", token_ids=tuple(range(1, 20)), finish_reason=FinishReason.STOP)
    assert await message(lanes) == [(1, rest), (1, END)]
    assert lane.is_gone


async def test_a_whole_answer_of_one_token_is_not_kept_back(lanes: Lanes, lane: Lane) -> None:
    only = Delta(text="a", finish_reason=FinishReason.STOP)
    put(lane, [Started(3), only, END])
    assert await message(lanes) == [(1, Started(3)), (1, only), (1, END)]
    assert lane.is_gone


async def test_a_whole_answer_without_a_token_ends_all_the_same(lanes: Lanes) -> None:
    put(lanes.open(1, 512, is_whole=True), [Started(3), END])
    assert await message(lanes) == [(1, Started(3)), (1, END)]


async def test_a_long_whole_answer_leaves_in_bulky_pieces_before_its_end(lanes: Lanes, lane: Lane) -> None:
    given = tokens(1000)
    came: list[Event] = []
    messages = 0
    for token in given:
        lane.put(token)
        events = await next_message(lanes)
        if events is not None:
            came += [event for _, event in events]
            messages += 1
    assert 1 < messages < 50
    assert len(came) == messages
    assert whole_text(given).startswith(whole_text(came))
    lane.put(END)
    came += await of(lanes, 1)
    assert whole_text(came) == whole_text(given)
    assert came[-1] == END


@pytest.mark.parametrize("kind", ["two choices", "logprobs"])
async def test_a_long_whole_answer_that_cannot_be_joined_leaves_in_few_messages_all_the_same(
    lanes: Lanes, kind: str
) -> None:
    lane = lanes.open(1, 10_000, is_whole=True)
    if kind == "logprobs":
        entry = TokenLogprob("word ", -1.0, b"word ")
        given = [Delta(text="word ", logprobs=(entry,)) for _ in range(1000)]
    else:
        given = [Delta(choice=number % 2, text="word ") for number in range(1000)]
    messages = 0
    for token in [*given, END]:
        lane.put(token)
        while await next_message(lanes):
            messages += 1
    assert lane.is_gone
    assert messages < 100


async def test_a_whole_answer_keeps_to_its_room_and_goes_on_when_there_is_more(lanes: Lanes) -> None:
    lane = lanes.open(1, 2, is_whole=True)
    given = tokens(1000)
    put(lane, [Started(3), *given, END])
    came = await of(lanes, 1)
    assert came == [Started(3), given[0]]
    assert await is_silent(lanes)
    while came[-1] != END:
        lanes.make_room(1, 1)
        more = await of(lanes, 1)
        assert len([event for event in more if event != END]) == 1
        came += more
    assert whole_text(came) == whole_text(given)


@pytest.mark.parametrize(
    "special",
    [
        Delta(text="x", logprobs=(TokenLogprob("x", -1.0, b"x"),)),
        Delta(tool_calls=(ToolCallDelta(0, "call"),)),
        Delta(reasoning="hm"),
        Delta(choice=1, text="x"),
    ],
    ids=["logprobs", "tool call", "reasoning", "other choice"],
)
async def test_a_whole_answer_may_say_more_than_text(lanes: Lanes, lane: Lane, special: Delta) -> None:
    put(lane, [*words("first"), *words("a", "b"), special, special, *words("c", "d")])
    assert await of(lanes, 1) == words("first")
    assert await is_silent(lanes)
    lane.put(END)
    joined = Delta(choice=1, text="xx") if special.choice else None
    middle = [joined] if joined else [special, special]
    assert await of(lanes, 1) == [Delta(text="ab"), *middle, Delta(text="cd"), END]


async def test_of_a_whole_answer_of_several_choices_each_gets_its_text_and_its_end(lanes: Lanes, lane: Lane) -> None:
    for pair in zip(tokens(10), tokens(10, choice=1), strict=True):
        put(lane, pair)
    put(lane, [Delta(choice=choice, finish_reason=FinishReason.STOP) for choice in (1, 0)])
    lane.put(END)
    came = [event for event in await of(lanes, 1) if type(event) is Delta]
    for choice in (0, 1):
        mine = [event for event in came if event.choice == choice]
        assert whole_text(mine) == whole_text(tokens(10))
        assert [event.finish_reason for event in mine if event.finish_reason] == [FinishReason.STOP]
        assert mine[-1].finish_reason is FinishReason.STOP


async def test_an_error_overtakes_the_rest_of_a_whole_answer(lanes: Lanes, lane: Lane) -> None:
    put(lane, [*tokens(30), BROKEN])
    assert await of(lanes, 1) == [tokens(1)[0], BROKEN]
    assert lane.is_gone
    assert await is_silent(lanes)


async def test_vectors_of_a_whole_answer_are_not_kept_back(lanes: Lanes, lane: Lane) -> None:
    put(lane, [Started(3), Embedding(0, bytes(8)), Embedding(1, bytes(BULKY_BYTES))])
    assert await of(lanes, 1) == [Started(3), Embedding(0, bytes(8)), Embedding(1, bytes(BULKY_BYTES))]


async def test_a_whole_answer_does_not_hold_up_a_stream_s_tokens(lanes: Lanes) -> None:
    whole, stream = lanes.open(1, 512, is_whole=True), lanes.open(2, 512)
    put(whole, tokens(40))
    put(stream, words("x"))
    assert await message(lanes) == [(1, tokens(1)[0]), (2, Delta(text="x"))]
    put(stream, words("y"))
    assert await message(lanes) == [(2, Delta(text="y"))]


async def test_each_event_says_whether_its_caller_reads_token_ids(lanes: Lanes) -> None:
    lanes.open(1, UNLIMITED, with_token_ids=False).put(tokens(1)[0])
    lanes.open(2, UNLIMITED).put(tokens(1)[0])
    # Whether they travel is for the message to say: here they are what they were.
    assert await lanes.take() == [(1, tokens(1)[0], False), (2, tokens(1)[0], True)]


async def test_who_is_nudged_says_what_there_is_and_goes_back_to_keeping(lanes: Lanes, lane: Lane) -> None:
    first, *others = tokens(20)
    put(lane, [Started(3), first])
    await message(lanes)
    lane.nudge()
    assert await is_silent(lanes)
    put(lane, others[:5])
    lane.nudge()
    assert await message(lanes) == [(1, Delta(text=whole_text(others[:5]), token_ids=tuple(range(1, 6))))]
    put(lane, others[5:])
    assert await is_silent(lanes)
    put(lane, [END])
    assert whole_text(event for _, event in await message(lanes)) == whole_text(others[5:])
