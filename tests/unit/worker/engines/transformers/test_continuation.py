"""A choice that another engine began: it goes on where it was, and counts as one. Tokens here are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from lbcore.errors import CannotContinue, EngineFailed, InvalidRequest
from lbcore.generation import Continuation, Delta, Dialect, Event, Finished, FinishReason, GenerationRequest, Started
from worker.engines.begun import Begun
from worker.engines.transformers.body import Ask, SamplingDefaults, read_body
from worker.engines.transformers.choice import Choice
from worker.engines.transformers.detokenizer import Detokenizer
from worker.engines.transformers.request import ChoiceSequence, Request, encode, told
from worker.engines.transformers.vocabulary import Vocabulary

PROMPT = [1, 2, 3]
ANSWER = "Né 🙂 so."


class Bytes:
    """As much of a vocabulary as is needed."""

    size = 256
    special: frozenset[int] = frozenset()

    def encode(self, ask: Ask) -> list[list[int]]:
        return [PROMPT] * len(ask.prompts)

    def encode_text(self, text: str) -> list[int]:
        return [*text.encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


VOCABULARY = cast("Vocabulary", Bytes())


class Chance:
    """Counts what is left out."""

    skipped = 0

    def skip(self, tokens: int) -> None:
        self.skipped = tokens


def ask(fields: bytes = b"") -> Ask:
    body = b'{"messages": [{"role": "user", "content": "x"}]%s}' % fields
    return read_body(GenerationRequest("r", Dialect.CHAT, body), SamplingDefaults())


def taken_up(continuation: Continuation, fields: bytes = b"", limit: int = 100) -> tuple[ChoiceSequence, Chance]:
    wanted = ask(fields)
    begun = encode(wanted, continuation, VOCABULARY).begun
    assert begun is not None
    choice = Choice(0, begun.reader, wanted.stop, {0}, wanted.sampling.min_tokens)
    chance: Any = Chance()
    request = Request("r", lambda _: None, wanted, (0, 1), continuation, begun_tokens=len(begun.token_ids))
    one = ChoiceSequence("k", request, 0, PROMPT, limit, choice, chance)
    request.sequences.append(one)
    one.go_on(begun, continuation)
    return one, chance


def rest(one: ChoiceSequence, tokens: bytes) -> list[Delta]:
    deltas = []
    for count in range(1, len(tokens) + 1):
        delta = one.take(tokens[:count], count == len(tokens), VOCABULARY)
        assert delta is not None
        deltas.append(delta)
        if one.choice.ended:
            break
    return deltas


def text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("cut", range(1, len(ANSWER.encode())))
def test_it_goes_on_wherever_it_was_cut_in_a_character_too(cut: int) -> None:
    octets = ANSWER.encode()
    said = octets[:cut].decode(errors="ignore")
    one, chance = taken_up(Continuation(said, "", tuple(octets[:cut])))
    assert one.prompt == [*PROMPT, *octets[:cut]]
    assert (one.max_tokens, chance.skipped) == (100 - cut, cut)
    deltas = rest(one, octets[cut:])
    assert said + text(deltas) == ANSWER
    assert [token for delta in deltas for token in delta.token_ids] == [*octets[cut:]]
    assert one.request.output_tokens == len(octets)


def test_its_text_is_enough() -> None:
    one, _ = taken_up(Continuation("Né"))
    assert one.prompt == [*PROMPT, *"Né".encode()]
    assert text(rest(one, b" so")) == " so"


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_stop_string_across_the_cut_ends_it(cut: int) -> None:
    whole = b"ab stop"
    said = whole[: min(cut, 3)].decode()
    one, _ = taken_up(Continuation(said, "", tuple(whole[:cut])), b', "stop": ["stop"]')
    deltas = rest(one, whole[cut:] + b"more")
    assert said + text(deltas) == "ab "
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert one.request.output_tokens == len(whole)


def test_what_was_held_back_comes_with_the_next_token() -> None:
    one, _ = taken_up(Continuation("", "", tuple(b"st")), b', "stop": ["stop"]')
    assert rest(one, b"ay") == [
        Delta(0, "sta", (97,)),
        Delta(0, "y", (121,), finish_reason=FinishReason.LENGTH),
    ]


def test_a_stop_string_among_the_first_tokens_of_the_whole_does_not_count() -> None:
    wanted = b', "stop": ["b"], "min_tokens": 3, "max_tokens": 9'
    one, _ = taken_up(Continuation("ab", "", tuple(b"ab")), wanted)
    assert text(rest(one, b"bcbd")) == "bc"


@pytest.mark.parametrize(
    ("continuation", "limit", "end"),
    [
        (Continuation("ab", "", tuple(b"ab")), 2, Delta(finish_reason=FinishReason.LENGTH)),
        (Continuation("a", "", tuple(b"ast")), 3, Delta(text="st", finish_reason=FinishReason.LENGTH)),
        (Continuation("a", "", tuple(b"astop")), 9, Delta(finish_reason=FinishReason.STOP)),
    ],
)
def test_it_may_be_at_its_end(continuation: Continuation, limit: int, end: Delta) -> None:
    one, _ = taken_up(continuation, b', "stop": ["stop"]', limit)
    assert one.is_at_its_end
    assert one.take((), True, VOCABULARY) == end
    assert one.request.is_complete
    assert one.request.output_tokens == len(continuation.token_ids)


def test_all_that_is_computed_is_told_first_and_in_the_end_what_one_answer_has() -> None:
    events: list[Event] = []
    request = Request("r", events.append, ask(), (0, 1), Continuation("ab"), prompt_tokens=10, begun_tokens=4)
    request.begin(0, 12)
    assert events == [Started(14, 12)]
    assert request.finished() == Finished(10, 10, 0)


@pytest.mark.parametrize("continuation", [Continuation("a"), Continuation()])
def test_one_of_several_choices_is_not_gone_on_with(continuation: Continuation) -> None:
    with pytest.raises(CannotContinue):
        encode(ask(b', "n": 2'), continuation, VOCABULARY)


def test_reasoning_is_not_gone_on_with() -> None:
    with pytest.raises(CannotContinue):
        encode(ask(), Continuation("a", "why", (97,)), VOCABULARY)


def test_an_answer_of_which_nothing_was_told_begins_anew() -> None:
    assert encode(ask(), Continuation(), VOCABULARY) == ([PROMPT], None)
    assert encode(ask(), None, VOCABULARY) == ([PROMPT], None)


def test_what_is_no_part_of_the_answer_is_not_gone_on_with() -> None:
    begun = Begun((97,), ("a",), Detokenizer(VOCABULARY.decode, ()))
    choice = Choice(0, begun.reader, (), {0})
    chance: Any = Chance()
    one = ChoiceSequence("k", Request("r", lambda _: None, ask(), (0, 1)), 0, PROMPT, 9, choice, chance)
    with pytest.raises(CannotContinue):
        one.go_on(begun, Continuation("b"))


def test_what_another_engine_took_is_not_refused_as_the_clients_fault() -> None:
    refused = InvalidRequest("No.")
    assert told(refused) is refused
    assert isinstance(told(refused, Continuation()), CannotContinue)
    assert isinstance(told(ValueError("secret"), Continuation()), EngineFailed)
