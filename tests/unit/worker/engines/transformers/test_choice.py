"""One choice: its last delta says why it ended, and its tokens are counted up to there."""

from __future__ import annotations

from collections.abc import Sequence

from lbcore.generation import Delta, FinishReason, TokenLogprob
from worker.engines.transformers.choice import Choice
from worker.engines.transformers.detokenizer import Detokenizer

END = 0


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def choice(*stop: str, ends: frozenset[int] = frozenset({END}), min_tokens: int = 0) -> Choice:
    return Choice(3, Detokenizer(decode, {END}), stop, ends, min_tokens)


def run(one: Choice, text: str | bytes, end: bool = False) -> list[Delta]:
    """One token after the other, until the choice ends or there are no more."""
    tokens = [*(text.encode() if isinstance(text, str) else text), *([END] if end else [])]
    deltas = []
    for number, token in enumerate(tokens, 1):
        deltas.append(one.gain([token], [], number == len(tokens)))
        if one.ended:
            break
    return deltas


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_the_limit_ends_it() -> None:
    one = choice()
    deltas = run(one, "abc")
    assert [delta.text for delta in deltas] == ["a", "b", "c"]
    assert [delta.token_ids for delta in deltas] == [(97,), (98,), (99,)]
    assert [delta.finish_reason for delta in deltas] == [None, None, FinishReason.LENGTH]
    assert {delta.choice for delta in deltas} == {3}
    assert one.tokens == 3


def test_an_end_token_ends_it_and_counts() -> None:
    one = choice()
    deltas = run(one, "ab", end=True)
    assert (text(deltas), one.tokens) == ("ab", 3)
    assert deltas[-1] == Delta(3, "", (END,), finish_reason=FinishReason.STOP)


def test_the_text_of_an_end_token_is_not_told() -> None:
    one = choice(ends=frozenset({ord("c")}))
    assert text(run(one, "abc")) == "ab"
    assert one.tokens == 3


def test_a_stop_string_ends_it_before_the_last_token() -> None:
    one = choice("cd", "never")
    deltas = run(one, "abcdef")
    assert (text(deltas), one.tokens, len(deltas)) == ("ab", 4, 4)
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_a_stop_string_among_the_first_tokens_does_not_count() -> None:
    assert text(run(choice("b", min_tokens=2), "abcbd")) == "abc"
    assert text(run(choice("bc", min_tokens=2), "abcd")) == "abcd"
    assert text(run(choice("b", min_tokens=1), "abcd")) == "a"


def test_tokens_behind_a_stop_string_are_left_out() -> None:
    one = choice("b")
    logprobs = [TokenLogprob(letter, -1.0, letter.encode()) for letter in "abcd"]
    delta = one.gain([*b"abcd"], logprobs, True)
    assert delta == Delta(3, "a", (97, 98), logprobs=tuple(logprobs[:2]), finish_reason=FinishReason.STOP)


def test_what_only_begins_a_stop_string_is_told_in_the_end() -> None:
    assert text(run(choice("cdx"), "abcd")) == "abcd"
    assert text(run(choice("cdx"), "abcd", end=True)) == "abcd"


def test_half_a_character_is_told_in_the_end() -> None:
    deltas = run(choice(), "a🙂".encode()[:3])
    assert [delta.text for delta in deltas] == ["a", "", "\N{REPLACEMENT CHARACTER}"]
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    one = choice("\N{REPLACEMENT CHARACTER}")
    assert run(one, "a🙂".encode()[:3])[-1].finish_reason is FinishReason.STOP
