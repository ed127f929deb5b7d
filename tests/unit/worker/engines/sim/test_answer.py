"""The simulated answers: the same for the same request, cut exactly at stop strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.generation import FinishReason
from worker.engines.sim.answer import (
    MAX_ANSWER_TOKENS,
    MIN_ANSWER_TOKENS,
    WORDS,
    deltas,
    draw_answer,
    draw_length,
    stamped_deltas,
)


def text_of(key: bytes, choice: int, length: int, stop: tuple[str, ...] = ()) -> str:
    return "".join(delta.text for delta in deltas(draw_answer(key, choice, length, True, stop), choice, None))


def test_the_words_are_different_and_some_are_not_ascii() -> None:
    assert len(set(WORDS)) == len(WORDS) == 64
    assert sum(not word.isascii() for word in WORDS) >= 5


def test_a_token_is_the_word_with_its_number_and_a_space() -> None:
    for delta in deltas(draw_answer(b"k", 0, 50, True, ()), 0, None):
        assert delta.text == WORDS[delta.token_ids[0]] + " "


def test_answers_differ_by_key_and_by_choice_and_a_longer_one_begins_like_a_shorter() -> None:
    texts = {text_of(key, choice, 20) for key in (b"a", b"b") for choice in (0, 1)}
    assert len(texts) == 4
    assert text_of(b"a", 0, 40).startswith(text_of(b"a", 0, 20))


def test_only_the_last_delta_has_a_finish_reason() -> None:
    for limited, reason in ((True, FinishReason.LENGTH), (False, FinishReason.STOP)):
        reasons = [delta.finish_reason for delta in deltas(draw_answer(b"k", 2, 5, limited, ()), 2, None)]
        assert reasons == [None] * 4 + [reason]


def test_drawn_lengths_stay_in_their_bounds_and_reach_both() -> None:
    lengths = {draw_length(str(number).encode()) for number in range(5000)}
    assert (min(lengths), max(lengths)) == (MIN_ANSWER_TOKENS, MAX_ANSWER_TOKENS)


@given(st.binary(max_size=4), st.integers(0, 300), st.integers(1, 12), st.integers(0, 300), st.integers(1, 12))
def test_a_stop_string_ends_the_text_before_it(key: bytes, at: int, size: int, other_at: int, other_size: int) -> None:
    whole = text_of(key, 0, 60)
    stop = tuple(one for one in (whole[at : at + size], whole[other_at : other_at + other_size]) if one)
    answer = draw_answer(key, 0, 60, True, stop)
    parts = list(deltas(answer, 0, None))
    text = "".join(delta.text for delta in parts)
    if not stop:
        assert text == whole
        return
    ends = min((whole.find(one) + len(one), whole.find(one)) for one in stop)
    assert text == whole[: ends[1]]
    assert parts[-1].finish_reason is FinishReason.STOP
    assert all(len(delta.token_ids) == 1 for delta in parts)
    # The tokens go on to the one that completed the stop string, and no further.
    covered = "".join(WORDS[delta.token_ids[0]] + " " for delta in parts)
    assert len(covered) >= ends[0]
    assert len(covered) - len(WORDS[parts[-1].token_ids[0]]) - 1 < ends[0]


def test_of_two_stop_strings_that_end_together_the_longer_counts() -> None:
    whole = text_of(b"k", 0, 20)
    assert text_of(b"k", 0, 20, (whole[8:10], whole[5:10])) == whole[: min(whole.find(whole[8:10]), 5)]


def test_a_stop_string_that_never_comes_changes_nothing() -> None:
    assert text_of(b"k", 0, 20, ("\n",)) == text_of(b"k", 0, 20)


def test_log_probabilities_belong_to_the_tokens() -> None:
    plain = list(deltas(draw_answer(b"k", 1, 10, True, ()), 1, None))
    told = list(deltas(draw_answer(b"k", 1, 10, True, ()), 1, 3))
    for bare, delta in zip(plain, told, strict=True):
        (logprob,) = delta.logprobs
        assert (delta.text, delta.token_ids, delta.finish_reason) == (bare.text, bare.token_ids, bare.finish_reason)
        assert logprob.token == delta.text
        assert logprob.token_bytes == delta.text.encode()
        assert [one.logprob for one in logprob.top] == sorted((one.logprob for one in logprob.top), reverse=True)
        assert len({one.token for one in logprob.top}) == 3
        assert logprob.top[0].token == logprob.token


def test_a_stamp_is_taken_when_the_delta_is() -> None:
    times = iter(range(100, 200))
    stamped = stamped_deltas(3, 1, FinishReason.LENGTH, lambda: next(times))
    assert next(stamped).text == "100 "
    assert next(times) == 101
    rest = list(stamped)
    assert [delta.text for delta in rest] == ["102 ", "103 "]
    assert rest[-1].finish_reason is FinishReason.LENGTH
    with pytest.raises(StopIteration):
        next(stamped)
