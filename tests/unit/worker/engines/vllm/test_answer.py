"""Outputs of vLLM's engine become events. The outputs here have the shape of vLLM's and nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lbcore.errors import EngineFailed
from lbcore.generation import Delta, Event, Finished, FinishReason, Started, ToolCallDelta
from worker.engines.vllm.answer import Answer


def asked(**fields: object) -> Any:
    known = {"n": 1, "logprobs": None, "top_logprobs": None, "tool_choice": None, "include_reasoning": True}
    return SimpleNamespace(**{**known, **fields})


def sequence(index: int, text: str, tokens: Sequence[int], reason: str | None = None, **fields: object) -> Any:
    known = {"index": index, "text": text, "token_ids": list(tokens), "finish_reason": reason, "logprobs": None}
    return SimpleNamespace(**{**known, **fields})


def output(*sequences: Any, prompt: Sequence[int] | None = (1, 2, 3), cached: int = 0, metrics: Any = None) -> Any:
    return SimpleNamespace(
        prompt_token_ids=prompt,
        num_cached_tokens=cached,
        outputs=sequences,
        metrics=metrics,
        prompt_logprobs=None,
    )


def answer(request: Any, parsers: Sequence[Any] = (None,), copies: int = 1) -> Answer:
    return Answer(request, parsers, copies, lambda *_: None, lambda: None)


class SpacedParser:
    """Finds, in each piece of text, what the piece says it is."""

    def parse_delta(self, *, delta_text: str, finished: bool, **_: object) -> Any:
        kind, _, rest = delta_text.partition(":")
        if kind == "hold":
            return None
        call = SimpleNamespace(index=0, id="c1", function=SimpleNamespace(name="look", arguments=rest))
        return SimpleNamespace(
            content=rest if kind == "say" else None,
            reasoning=rest if kind == "think" else None,
            tool_calls=[call] if kind == "call" else [],
        )


def test_the_first_output_starts_the_answer_with_exact_counts() -> None:
    events = answer(asked()).take(0, output(sequence(0, "Hi", [7]), prompt=(1, 2, 3, 4), cached=2))
    assert events == [Started(4, 2), Delta(0, "Hi", (7,))]


def test_an_output_without_news_is_no_event() -> None:
    assert answer(asked()).take(0, output(sequence(0, "", []))) == []


def test_a_token_without_text_is_told_all_the_same() -> None:
    _, delta = answer(asked()).take(0, output(sequence(0, "", [7])))
    assert delta == Delta(0, "", (7,))


def test_the_end_counts_all_prompts_and_choices() -> None:
    one = answer(asked(n=2), [None] * 4)
    for prompt in (0, 1):
        for index in (0, 1):
            tokens = [7] * (1 + prompt + index)
            one.take(prompt, output(sequence(index, "x", tokens, "length"), prompt=[5] * (3 + prompt), cached=1))
    assert one.end() == Finished(7, 2, 1 + 2 + 2 + 3)


def test_an_answer_with_a_choice_missing_has_no_good_end() -> None:
    one = answer(asked(n=2), [None, None])
    one.take(0, output(sequence(0, "x", [7], "stop")))
    with pytest.raises(EngineFailed):
        one.end()


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_sequence_that_vllm_gave_up_is_a_failure(reason: str) -> None:
    with pytest.raises(EngineFailed):
        answer(asked()).take(0, output(sequence(0, "", [], reason)))


def test_one_sequence_stands_for_choices_that_cannot_differ() -> None:
    one = answer(asked(), copies=3)
    events = one.take(0, output(sequence(0, "x", [7], "stop")))
    assert [event.choice for event in events if isinstance(event, Delta)] == [0, 1, 2]
    assert one.end().output_tokens == 3


def test_each_sequence_leaves_the_engine_once_however_many_choices_it_stands_for() -> None:
    left: list[None] = []
    one = Answer(asked(), [None, None], 4, lambda *_: None, lambda: left.append(None))
    for prompt in (0, 1):
        one.take(prompt, output(sequence(0, "x", [7])))
        one.take(prompt, output(sequence(0, "y", [8], "stop")))
    assert len(left) == 2
    assert one.end().output_tokens == 16


def test_what_the_parser_finds_goes_where_it_belongs() -> None:
    one = answer(asked(), [SpacedParser()])
    events: list[Event] = []
    for text in ("think:why", "hold:", "call:{}", "say:so"):
        events += one.take(0, output(sequence(0, text, [7])))
    events += one.take(0, output(sequence(0, "", [8], "stop")))
    deltas = [event for event in events if isinstance(event, Delta)]
    assert [delta.reasoning for delta in deltas] == ["why", "", "", "", ""]
    assert deltas[2].tool_calls == (ToolCallDelta(0, "c1", "look", "{}"),)
    assert [delta.text for delta in deltas] == ["", "", "", "so", ""]
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS
    assert one.end().output_tokens == 5


def test_a_call_that_the_client_named_ends_as_a_plain_stop() -> None:
    choice = SimpleNamespace(function=SimpleNamespace(name="look"))
    one = answer(asked(tool_choice=choice), [SpacedParser()])
    (_, delta) = one.take(0, output(sequence(0, "call:{}", [7], "stop")))
    assert isinstance(delta, Delta)
    assert delta.finish_reason is FinishReason.STOP


def test_reasoning_that_is_not_to_be_seen_leaves_no_trace_but_its_count() -> None:
    likely = [{7: SimpleNamespace(logprob=-0.1, decoded_token="why")}]
    one = answer(asked(include_reasoning=False, logprobs=True), [SpacedParser()])
    one.take(0, output(sequence(0, "think:why", [7], logprobs=likely)))
    _, delta = (None, *one.take(0, output(sequence(0, "think:why", [7], "stop", logprobs=likely))))
    assert delta == Delta(0, "", finish_reason=FinishReason.STOP)
    assert one.end().output_tokens == 2


def test_log_probabilities_are_ranked_and_cut_to_what_was_asked() -> None:
    likely = {
        7: SimpleNamespace(logprob=-1.0, decoded_token="b"),
        5: SimpleNamespace(logprob=-0.5, decoded_token="a"),
        9: SimpleNamespace(logprob=float("-inf"), decoded_token=None),
    }
    one = answer(asked(logprobs=True, top_logprobs=2))
    _, delta = one.take(0, output(sequence(0, "b", [7], logprobs=[likely])))
    assert isinstance(delta, Delta)
    (logprob,) = delta.logprobs
    assert (logprob.token, logprob.logprob, logprob.token_bytes) == ("b", -1.0, b"b")
    assert [(top.token, top.logprob) for top in logprob.top] == [("a", -0.5), ("b", -1.0)]


def test_an_echo_stands_before_the_first_text_of_each_choice() -> None:
    one = answer(asked(n=2), [None, None])
    events = one.take(0, output(sequence(0, "!", [7]), sequence(1, "?", [8])), echo="Hello")
    events += one.take(0, output(sequence(0, "!", [7])), echo="Hello")
    assert [event.text for event in events if isinstance(event, Delta)] == ["Hello!", "Hello?", "!"]


def test_the_engines_own_stamps_say_how_long_a_prompt_took() -> None:
    told: list[tuple[int, float, float]] = []
    metrics = SimpleNamespace(scheduled_ts=5.0, first_token_ts=6.5)
    one = Answer(asked(), [None], 1, lambda *facts: told.append(facts), lambda: None)
    for _ in range(2):
        one.take(0, output(sequence(0, "x", [7]), prompt=[1] * 40, cached=16, metrics=metrics))
    assert told == [(24, 5.0, 6.5)]
