"""What there is of an answer is put behind the prompt, and what stood held back at the cut comes out once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson
import pytest

from lbcore.errors import CannotContinue
from lbcore.generation import Continuation, Delta, Dialect, Event, Finished, FinishReason, GenerationRequest, Started
from worker.engines.openai.answer import DONE, Answer
from worker.engines.openai.body import Ask, read_body, write_body
from worker.engines.openai.continuation import (
    Begun,
    body_changes,
    end_of,
    fits,
    limits_left,
    refuse_kind,
    refuse_to_continue,
)
from worker.engines.openai.errors import BadAnswer
from worker.engines.openai.kinds import KINDS, UNKNOWN, Facts

VLLM, SGLANG, LLAMACPP = KINDS[:3]
SOME = Continuation("Hel")


def chat(**fields: object) -> Ask:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    return read_body(GenerationRequest("r", Dialect.CHAT, orjson.dumps(body)))


def complete(**fields: object) -> Ask:
    return read_body(GenerationRequest("r", Dialect.COMPLETION, orjson.dumps({"prompt": "x", **fields})))


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"best_of": 2},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"guided_choice": ["a"]},
        {"grammar": "root ::= x"},
        {"json_schema": {"type": "object"}},
        {"ebnf": "root ::= x"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "look"}}},
        {"functions": [{"name": "look"}]},
        {"echo": True},
        {"suffix": "end"},
        {"bad_words": ["x"]},
        {"truncate_prompt_tokens": 5},
        {"include_stop_str_in_output": True},
        {"include_reasoning": False},
    ],
)
@pytest.mark.parametrize("make", [chat, complete])
def test_an_answer_that_is_more_than_a_text_is_not_gone_on_with(
    make: Callable[..., Ask], fields: dict[str, object]
) -> None:
    with pytest.raises(CannotContinue):
        refuse_to_continue(make(**fields), SOME)


def test_other_answers_are() -> None:
    for ask in (
        chat(),
        chat(n=1, response_format={"type": "text"}, tool_choice="auto", tools=[], stop="x", seed=5, echo=False),
        complete(prompt=[1, 2], suffix="", best_of=1),
    ):
        refuse_to_continue(ask, SOME)


def test_several_prompts_reasoning_and_messages_that_the_client_began_are_refused() -> None:
    begun = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    for ask, continuation in (
        (complete(prompt=["x", "y"]), SOME),
        (chat(), Continuation("Hel", "Hm")),
        (chat(messages=begun), SOME),
        (chat(add_generation_prompt=False), SOME),
        (read_body(GenerationRequest("r", Dialect.EMBEDDING, b'{"input":"x"}')), SOME),
    ):
        with pytest.raises(CannotContinue):
            refuse_to_continue(ask, continuation)


def test_only_kinds_that_are_known_to_go_on() -> None:
    assert {kind.name for kind in KINDS if kind.goes_on is not None} == {"vllm", "sglang", "llamacpp"}
    with pytest.raises(CannotContinue):
        refuse_kind(chat(), UNKNOWN)


def test_penalties_that_pass_over_the_prompt_are_refused() -> None:
    refuse_kind(chat(presence_penalty=0.5), LLAMACPP)
    refuse_kind(chat(presence_penalty=0.0, repetition_penalty=1.2), VLLM)
    refuse_kind(chat(repetition_penalty=1.0), SGLANG)
    for kind, field in ((VLLM, "presence_penalty"), (SGLANG, "frequency_penalty"), (SGLANG, "repetition_penalty")):
        with pytest.raises(CannotContinue):
            refuse_kind(chat(**{field: 0.5}), kind)


def test_the_limit_is_for_the_whole_answer() -> None:
    assert limits_left(chat(max_tokens=12), VLLM, 5) == (("max_tokens", 7),)
    both = chat(max_tokens=12, max_completion_tokens=12)
    assert limits_left(both, VLLM, 12) == (("max_completion_tokens", 0), ("max_tokens", 0))
    assert limits_left(complete(n_predict=9), LLAMACPP, 5) == (("n_predict", 4),)
    assert limits_left(chat(), VLLM, 5) == limits_left(complete(), LLAMACPP, 5) == ()


def test_a_completion_without_a_limit_has_the_server_s() -> None:
    assert limits_left(complete(), VLLM, 5) == (("max_tokens", 11),)
    with pytest.raises(CannotContinue):
        limits_left(complete(max_tokens=None), VLLM, 5)


def test_limits_that_differ_are_not_chosen_from() -> None:
    with pytest.raises(CannotContinue):
        limits_left(chat(max_tokens=5, max_completion_tokens=6), SGLANG, 2)


def test_beyond_the_text_tokens_may_say_only_what_may_become_a_stop_string() -> None:
    assert fits("Hel", chat(), "Hel")
    assert not fits("Hello", chat(), "Hel")
    assert not fits("Ha", chat(stop="abcd"), "Hel")
    assert fits("Hello", chat(stop=["a", "abc"]), "Hel")
    assert not fits("Hello!", chat(stop="abc"), "Hel")
    assert not fits("Hello", chat(stop="abc", ignore_eos=True), "Hel")


def test_a_chat_gets_a_last_message() -> None:
    ask = chat(max_tokens=12, min_tokens=3)
    begun = Begun("Hel", (7, 8), 4, limits=(("max_tokens", 8),))
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Hel"}]
    for kind, fields in (
        (VLLM, {"add_generation_prompt": False, "continue_final_message": True}),
        (SGLANG, {"continue_final_message": True}),
        (LLAMACPP, {}),
    ):
        changes = body_changes(ask, kind, begun)
        assert changes == {"max_tokens": 8, "min_tokens": 0, "messages": messages, **fields}
    body = orjson.loads(write_body(ask, "m", Facts(VLLM), body_changes(ask, VLLM, begun)).body)
    assert (body["messages"], body["max_tokens"], body["stream"]) == (messages, 8, True)


def test_a_completion_gets_tokens() -> None:
    begun = Begun("Hel", (7, 8), 2, prompt_ids=(1, 2))
    assert body_changes(complete(), SGLANG, begun) == {"prompt": [1, 2, 7, 8]}


def test_of_an_answer_of_which_no_text_is_sure_the_body_stays() -> None:
    assert body_changes(chat(), VLLM, Begun("", (), 0, tells_ids=False)) == {}


def test_nothing_is_left_of_the_limit() -> None:
    begun = Begun("Hello", (7,), 3, limits=(("max_tokens", 0),))
    assert end_of(chat(max_tokens=3), begun) == [Delta(finish_reason=FinishReason.LENGTH), Finished(0, 0, 3)]
    assert end_of(chat(max_tokens=3), Begun("Hello", (7,), 3, limits=(("max_tokens", 1),))) == []


def test_what_was_held_back_is_told_at_the_end() -> None:
    begun = Begun("Hello", (7,), 3, held="lo", limits=(("max_tokens", 0),))
    assert end_of(chat(stop="lor"), begun)[0] == Delta(0, "lo", finish_reason=FinishReason.LENGTH)
    assert end_of(chat(stop="o"), begun)[0] == Delta(0, "l", finish_reason=FinishReason.STOP)


def take(answer: Answer, chunks: Sequence[object]) -> list[Event]:
    datas = [chunk if isinstance(chunk, bytes) else orjson.dumps(chunk) for chunk in chunks]
    return [event for data in datas for event in answer.take(data)]


def said(text: str, ids: Sequence[int] = (), reason: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text, "token_ids": ids, "finish_reason": reason}], **more}


def test_usage_is_that_of_the_whole_answer() -> None:
    ask = complete(max_tokens=12)
    told = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}}
    chunks = [said("lo", [8], prompt_token_ids=[*range(10)]), said("!", [9], "stop", usage=told), DONE]
    events = take(Answer(ask, (), Facts(VLLM), 100, Begun("Hel", (5, 6, 7), 4)), chunks)
    assert events[0] == Started(10)
    assert events[-1] == Finished(7, 7, 6)


def test_a_prompt_with_the_answer_so_far_and_the_rest_of_the_limit_fits_the_context() -> None:
    begun = Begun("Hel", (5, 6, 7), 3)
    for context_length, fits_it in ((19, True), (18, False)):
        answer = Answer(complete(max_tokens=12), (), Facts(VLLM), context_length, begun)
        chunk = said("lo", [8], prompt_token_ids=[*range(10)])
        if fits_it:
            assert take(answer, [chunk])
            continue
        with pytest.raises(BadAnswer):
            take(answer, [chunk])


def test_a_stop_string_across_the_cut_ends_the_answer_before_it() -> None:
    begun = Begun("abcE", (5,), 2, held="E")
    answer = Answer(complete(stop="END"), ("END",), Facts(VLLM), 0, begun)
    events = take(answer, [said("N", [6]), said("Dx", [7]), said("y", [8])])
    assert events == [
        Started(0),
        Delta(0, "", (6,)),
        Delta(0, "", (7,), finish_reason=FinishReason.STOP),
        Finished(0, 0, 4),
    ]


def test_what_was_held_back_comes_before_what_is_new() -> None:
    answer = Answer(complete(stop="END"), ("END",), Facts(VLLM), 0, Begun("abcE", (5,), 2, held="E"))
    assert take(answer, [said(""), said("a", [6])]) == [Started(0), Delta(0, "Ea", (6,))]


def test_ids_that_were_told_are_not_told_again() -> None:
    answer = Answer(complete(), (), Facts(VLLM), 0, Begun("ab", (5,), 1, repeats=(6, 7)))
    events = take(answer, [said("", [6]), said("é", [7, 8]), said("c", [9])])
    assert [event for event in events if isinstance(event, Delta)] == [Delta(0, "é", (8,)), Delta(0, "c", (9,))]


def test_ids_that_do_not_go_on_from_those_that_were_told_are_kept_back() -> None:
    answer = Answer(complete(), (), Facts(VLLM), 0, Begun("ab", (5,), 1, repeats=(6, 7)))
    assert [*take(answer, [said("x", [9]), said("y", [7])])][1:] == [Delta(0, "x"), Delta(0, "y")]
    answer = Answer(complete(), (), Facts(VLLM), 0, Begun("ab", (5,), 1, tells_ids=False))
    assert take(answer, [said("", [9]), said("y", [7], "stop"), DONE])[1:] == [
        Delta(0, "y", finish_reason=FinishReason.STOP),
        Finished(0, 0, 3),
    ]


def test_a_server_that_begins_to_reason_has_not_gone_on() -> None:
    answer = Answer(chat(), (), Facts(SGLANG), 0, Begun("Hel", (5,), 1))
    with pytest.raises(BadAnswer) as caught:
        take(answer, [{"choices": [{"index": 0, "delta": {"reasoning_content": "Hm"}}]}])
    assert isinstance(caught.value.error, CannotContinue)
