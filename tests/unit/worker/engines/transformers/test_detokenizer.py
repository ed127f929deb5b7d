"""Text that is told while it comes is the text of all tokens, and no character is ever torn."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from worker.engines.transformers.detokenizer import MAX_HELD, NO_TEXT, Detokenizer

SPECIAL = {0, 1}


def decode_bytes(tokens: Sequence[int]) -> str:
    """A byte-level vocabulary: token 2 + b is the byte b."""
    return bytes(token - 2 for token in tokens).decode(errors="replace")


def encode(text: str | bytes) -> list[int]:
    return [byte + 2 for byte in (text.encode() if isinstance(text, str) else text)]


WORDS = ("", "", "▁Hello", "▁my", "▁world", "ly", "!")


def decode_words(tokens: Sequence[int]) -> str:
    """A vocabulary whose words begin with a space, except at the beginning of the text."""
    return "".join(WORDS[token] for token in tokens).replace("▁", " ").removeprefix(" ")


def told(detokenizer: Detokenizer, tokens: Sequence[int]) -> list[str]:
    return [*map(detokenizer.feed, tokens), detokenizer.flush()]


@given(st.text(), st.lists(st.integers(0, 40)))
def test_what_is_told_is_the_text_of_all_tokens(text: str, places: list[int]) -> None:
    tokens = encode(text)
    with_special = tokens[:]
    for place in places:
        with_special.insert(min(place, len(with_special)), place % 2)
    pieces = told(Detokenizer(decode_bytes, SPECIAL), with_special)
    assert "".join(pieces) == text
    assert NO_TEXT in text or not any(NO_TEXT in piece for piece in pieces)


@given(st.binary(max_size=12))
def test_bytes_that_are_no_text_are_told_as_a_decoder_would(raw: bytes) -> None:
    assert "".join(told(Detokenizer(decode_bytes, SPECIAL), encode(raw))) == raw.decode(errors="replace")


def test_a_character_waits_for_its_last_byte() -> None:
    assert told(Detokenizer(decode_bytes, SPECIAL), encode("a🙂b")) == ["a", "", "", "", "🙂", "b", ""]
    assert told(Detokenizer(decode_bytes, SPECIAL), encode("🙂".encode()[:3]))[-1] == NO_TEXT


def test_what_will_never_be_text_is_not_held_for_ever() -> None:
    pieces = told(Detokenizer(decode_bytes, SPECIAL), encode(b"\xff" * 50))
    assert "".join(pieces) == NO_TEXT * 50
    assert len(pieces[MAX_HELD - 1]) == MAX_HELD


def test_spaces_between_words_are_kept_and_the_one_before_the_first_is_not() -> None:
    tokens = [2, 0, 4, 5, 3, 4, 6]
    pieces = told(Detokenizer(decode_words, SPECIAL), tokens)
    assert "".join(pieces) == decode_words(tokens) == "Hello worldly my world!"
    assert pieces[:5] == ["Hello", "", " world", "ly", " my"]


def test_a_text_that_goes_on_keeps_the_space_before_its_first_word() -> None:
    assert "".join(told(Detokenizer(decode_words, SPECIAL, [1, 2, 3]), [4, 6])) == " world!"
    assert "".join(told(Detokenizer(decode_words, SPECIAL, [0, 1]), [4, 6])) == "world!"


def test_nothing_comes_of_nothing() -> None:
    assert told(Detokenizer(decode_words, SPECIAL), []) == [""]
    assert told(Detokenizer(decode_words, SPECIAL, [2]), [0, 1]) == ["", "", ""]
