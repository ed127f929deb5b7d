"""What is read from a body, and what is refused by name."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.transformers.body import Ask, SamplingDefaults, read_body

DEFAULTS = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1)


def complete(defaults: SamplingDefaults = DEFAULTS, **fields: object) -> Ask:
    body = orjson.dumps({"prompt": "x", **fields})
    return read_body(GenerationRequest("r", Dialect.COMPLETION, body), defaults)


def chat(*messages: object, **fields: object) -> Ask:
    body = orjson.dumps({"messages": messages or [{"role": "user", "content": "x"}], **fields})
    return read_body(GenerationRequest("r", Dialect.CHAT, body), DEFAULTS)


def rendered(ask: Ask) -> list[dict[str, Any]]:
    assert ask.chat is not None
    return ask.chat.messages


def test_what_a_request_leaves_out_is_what_the_model_recommends() -> None:
    rules = complete().sampling
    assert (rules.temperature, rules.top_p, rules.top_k, rules.min_p, rules.repetition_penalty) == (
        (0.6, 0.9, 20, 0.05, 1.1)
    )
    rules = complete(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1).sampling
    assert (rules.temperature, rules.top_p, rules.top_k, rules.min_p, rules.repetition_penalty) == (0, 1, 0, 0, 1)
    assert complete(top_k=-1).sampling.top_k == 0
    assert complete(SamplingDefaults()).sampling.temperature == 1


def test_limits_and_their_defaults() -> None:
    assert complete().max_tokens == 16
    assert chat().max_tokens is None
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6
    assert complete(max_tokens=3, min_tokens=3).sampling.min_tokens == 3


def test_prompts_and_choices() -> None:
    ask = complete(prompt=["a", [1, 2]], n=3, stop="z", seed=4, logprobs=2, ignore_eos=True, stop_token_ids=[7])
    assert (ask.prompts, ask.choices_per_prompt, ask.stop, ask.seed) == (("a", [1, 2]), 3, ("z",), 4)
    assert (ask.top_logprobs, ask.ignore_eos, ask.stop_token_ids) == (2, True, (7,))
    assert chat(logprobs=True).top_logprobs == 0
    assert chat().top_logprobs is None


def test_content_in_parts_becomes_one_text_and_arguments_an_object() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    calls = [{"function": {"name": "f", "arguments": arguments}} for arguments in ('{"on": 1}', "", "{", {"on": 2})]
    assistant = {"role": "assistant", "content": None, "tool_calls": [*calls, {"id": "1"}]}
    messages = rendered(chat({"role": "user", "content": parts}, assistant, {"role": "user"}))
    assert [message["content"] for message in messages] == ["ab", None, ""]
    told = [call.get("function", {}).get("arguments") for call in messages[1]["tool_calls"]]
    assert told == [{"on": 1}, {}, "{", {"on": 2}, None]


def test_what_the_template_is_given() -> None:
    given = chat(chat_template_kwargs={"enable_thinking": False}).chat
    assert given is not None
    assert given.arguments == {
        "enable_thinking": False,
        "add_generation_prompt": True,
        "continue_final_message": False,
    }
    given = chat(tools=[{"type": "function"}], tool_choice="none", continue_final_message=True).chat
    assert given is not None
    assert given.arguments == {"add_generation_prompt": False, "continue_final_message": True}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", 101),
        ("top_p", 1.5),
        ("top_k", 1.5),
        ("top_k", -2),
        ("min_p", -0.1),
        ("presence_penalty", 3),
        ("frequency_penalty", "x"),
        ("repetition_penalty", 0),
        ("logit_bias", [1]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": True}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("stop_token_ids", 5),
        ("stop_token_ids", [True]),
        ("allowed_token_ids", [-1]),
        ("min_tokens", 17),
        ("n", 129),
        ("best_of", 2),
        ("echo", True),
        ("suffix", "x"),
        ("bad_words", ["x"]),
        ("response_format", {"type": "json_object"}),
        ("skip_special_tokens", False),
        ("logprobs", 21),
        ("ignore_eos", "yes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
    ],
)
def test_what_no_chat_can_be_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_embeddings_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_body(GenerationRequest("r", Dialect.EMBEDDING, b'{"input": "x"}'), DEFAULTS)
    assert caught.value.param == "model"


def test_too_many_choices_over_all_prompts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="128 choices"):
        complete(prompt=["a"] * 65, n=2)
