"""The tokens that stand for an answer that another engine began, and what is left of it to tell."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.errors import CannotContinue, ContextLengthExceeded, EngineFailed, LoadBalancerError
from lbcore.generation import Continuation, Delta, FinishReason, ToolCallDelta
from worker.engines.begun import Begun, Told, begin, is_empty, refusal

SIZE = 256
CALL = ToolCallDelta(0, "c1", "look", "{}")


class Bytes:
    """Reads tokens that are bytes, and tells whole characters."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, token: int, /) -> str:
        self._held += bytes([token])
        try:
            text = self._held.decode()
        except UnicodeDecodeError:
            return ""
        self._held = b""
        return text


def encode(text: str) -> list[int]:
    return [*text.encode()]


def begun(continuation: Continuation, is_parsed: bool = False) -> Begun[Bytes]:
    return begin(continuation, Bytes, encode, SIZE, is_parsed=is_parsed)


def ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


@given(st.text(max_size=12), st.data())
def test_tokens_that_say_as_much_as_the_text_or_more_are_taken_as_they_are(text: str, data: st.DataObject) -> None:
    told = data.draw(st.integers(0, len(text)))
    whole = text.encode()
    cut = data.draw(st.integers(len(text[:told].encode()), len(whole)))
    one = begun(Continuation(text[:told], "", tuple(whole[:cut])))
    assert one.token_ids == tuple(whole[:cut])
    # Its reader goes on where it is, be it in the middle of a character.
    assert "".join(one.texts) + "".join(map(one.reader.feed, whole[cut:])) == text


@given(st.text(max_size=12))
def test_without_tokens_those_of_the_text_are_taken(text: str) -> None:
    one = begun(Continuation(text))
    assert one.token_ids == ids(text)
    assert "".join(one.texts) == text


@given(st.text("ab…", max_size=8), st.text("ab…", max_size=8))
def test_tokens_that_say_something_else_are_kept_as_far_as_they_go(text: str, other: str) -> None:
    one = begun(Continuation(text, "", ids(other)))
    assert "".join(one.texts).startswith(text)


def test_half_a_character_in_other_tokens_is_not_kept() -> None:
    assert begun(Continuation("añb", "", (*ids("añ"), 0xC3, *ids("x")))).token_ids == ids("añb")


def test_tokens_that_the_vocabulary_has_not_are_left_out() -> None:
    assert begun(Continuation("ab", "", (97, SIZE))).token_ids == ids("ab")


def test_what_is_parsed_is_taken_as_it_is_however_it_reads() -> None:
    one = begun(Continuation("so", "why", ids("<why>so")), is_parsed=True)
    assert one.token_ids == ids("<why>so")


def test_reasoning_without_its_tokens_is_lost() -> None:
    with pytest.raises(CannotContinue):
        begun(Continuation("so", "why"), is_parsed=True)
    with pytest.raises(CannotContinue):
        begun(Continuation("so", "why", ids("why so")))


def test_a_space_that_the_vocabulary_puts_before_the_first_word_is_left_out() -> None:
    def spaced(text: str) -> Sequence[int]:
        return ids(f" {text}") if text else ()

    one = begin(Continuation("word"), Bytes, spaced, SIZE)
    assert "".join(one.texts) == "word"


def test_a_text_without_tokens_is_not_gone_on_with() -> None:
    with pytest.raises(CannotContinue):
        begin(Continuation("é"), Bytes, lambda text: text.encode("ascii", "replace"), SIZE)


def test_only_what_says_nothing_at_all_is_empty() -> None:
    assert is_empty(Continuation())
    assert not any(map(is_empty, (Continuation("a"), Continuation("", "a"), Continuation("", "", (1,)))))


def retell(told: Told, deltas: Sequence[Delta]) -> list[Delta]:
    return [rest for delta in deltas if (rest := told.rest(delta)) is not None]


@given(st.lists(st.text(max_size=3), min_size=1, max_size=8), st.data())
def test_what_was_told_and_the_rest_are_the_whole(pieces: list[str], data: st.DataObject) -> None:
    deltas = [Delta(0, piece, (number,)) for number, piece in enumerate(pieces)]
    deltas.append(Delta(0, "", (len(pieces),), finish_reason=FinishReason.STOP))
    cut = data.draw(st.integers(0, len(pieces)))
    said = "".join(pieces[:cut])
    held = data.draw(st.integers(0, len(said)))
    told = said[: len(said) - held]
    rest = retell(Told(Continuation(told), cut), deltas)
    assert told + "".join(delta.text for delta in rest) == "".join(pieces)
    assert [token for delta in rest for token in delta.token_ids] == [*range(cut, len(pieces) + 1)]
    # Each has a token: what was held back comes with the first.
    assert all(delta.token_ids for delta in rest)
    assert [delta.finish_reason for delta in rest][-1] is FinishReason.STOP


def test_an_engine_that_holds_back_more_says_less_for_a_while() -> None:
    one = Told(Continuation("abcd"), 2, most_held=2)
    deltas = [Delta(0, "a", (1,)), Delta(0, "b", (2,)), Delta(0, "c", (3,)), Delta(0, "de", (4,))]
    assert retell(one, deltas) == [Delta(0, "", (3,)), Delta(0, "e", (4,))]
    one = Told(Continuation("abcd"), 2, most_held=2)
    with pytest.raises(CannotContinue):
        retell(one, [*deltas[:2], Delta(0, "c", (3,), finish_reason=FinishReason.STOP)])


def test_reasoning_and_calls_go_on_too() -> None:
    one = Told(Continuation("so", "why"), 2)
    deltas = [Delta(0, "", (1,), "why"), Delta(0, "so", (2,)), Delta(0, "", (3,), "", (CALL,))]
    assert retell(one, deltas) == [Delta(0, "", (3,), "", (CALL,))]
    one = Told(Continuation("", "wh"), 1)
    assert retell(one, [Delta(0, "", (1,), "why"), Delta(0, "so", (2,))]) == [Delta(0, "so", (2,), "y")]


@pytest.mark.parametrize(
    ("continuation", "deltas"),
    [
        (Continuation("ab"), [Delta(0, "ax", (1,))]),
        (Continuation("", "ab"), [Delta(0, "", (1,), "b")]),
        # The text taken for reasoning, the reasoning for text, and both for nothing.
        (Continuation("ab"), [Delta(0, "", (1,), "ab")]),
        (Continuation("", "ab"), [Delta(0, "ab", (1,))]),
        (Continuation("ab"), [Delta(0, "", (1,))]),
        (Continuation("", "ab"), [Delta(0, "", (1,))]),
        (Continuation("a", "b"), [Delta(0, "a", (1,), "", (CALL,))]),
    ],
)
def test_another_answer_is_not_told(continuation: Continuation, deltas: list[Delta]) -> None:
    with pytest.raises(CannotContinue):
        retell(Told(continuation, 1), deltas)


def test_who_refuses_what_another_engine_took_is_not_the_clients_fault() -> None:
    error = ContextLengthExceeded("Too long.")
    assert refusal(error, None) is error
    assert isinstance(refusal(error, Continuation()), CannotContinue)
    own: LoadBalancerError = EngineFailed("It broke.")
    assert refusal(own, Continuation()) is own
