"""What is kept of an answer is what was passed on, however it came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbcore.generation import Continuation, Delta, Event, Finished, FinishReason, Started, ToolCallDelta
from lbcore.kept_answer import KeptAnswer

texts = st.text(max_size=5)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple)
deltas = st.builds(lambda text, ids, reasoning: Delta(0, text, ids, reasoning), texts, ids, texts)


def kept(events: list[Event], sizes: list[int]) -> KeptAnswer:
    """The events in batches of these sizes, and the rest in one."""
    answer = KeptAnswer()
    for size in sizes:
        answer.add(events[:size])
        events = events[size:]
    answer.add(events)
    return answer


@given(st.lists(deltas, max_size=30), st.lists(st.integers(1, 5), max_size=10))
def test_text_reasoning_and_tokens_are_those_of_all_deltas(said: list[Delta], sizes: list[int]) -> None:
    answer = kept([Started(3), *said], sizes)
    told = [token for delta in said for token in delta.token_ids]
    complete = all(delta.token_ids or not (delta.text or delta.reasoning) for delta in said)
    assert answer.continuation() == Continuation(
        "".join(delta.text for delta in said),
        "".join(delta.reasoning for delta in said),
        tuple(told) if complete else (),
    )
    assert answer.has_all_token_ids is complete
    assert answer.finish_reason is None


def test_a_long_answer_is_kept_as_text() -> None:
    answer = KeptAnswer()
    for number in range(10_000):
        answer.add([Delta(text="word ", token_ids=(number,))])
    assert len(answer._deltas) < 300
    assert answer.tokens == 10_000
    continuation = answer.continuation()
    assert continuation is not None
    assert continuation.text == "word " * 10_000
    assert continuation.token_ids == tuple(range(10_000))


def test_without_ids_a_delta_is_a_token() -> None:
    assert kept([Delta(text="a"), Delta(text="b", token_ids=(1, 2)), Delta(reasoning="c")], []).tokens == 4


def test_a_tool_call_cannot_be_said_again() -> None:
    answer = kept([Delta(text="a"), Delta(tool_calls=(ToolCallDelta(0, "id", "look"),))], [])
    assert answer.continuation() is None


def test_the_end_is_told_with_what_the_first_worker_said_of_the_prompt() -> None:
    said = [Started(10, 4), Delta(text="a", token_ids=(1,), finish_reason=FinishReason.STOP), Started(99)]
    answer = kept([*said], [])
    assert answer.finish_reason is FinishReason.STOP
    assert answer.finished() == Finished(10, 4, 1)
    assert answer.completed(Finished(0, 0, 7)) == Finished(10, 4, 7)
    assert answer.completed(Finished(12, 1, 7)) == Finished(12, 1, 7)
    assert KeptAnswer().completed(Finished(0, 0, 7)) == Finished(0, 0, 7)
