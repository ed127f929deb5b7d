from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.prompt import MAX_INPUTS
from gateway.schema import _RULES, MAX_CHOICES, OpenAIRequest, parse
from gateway.shapes import MAX_STOPS
from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def chat(**fields: object) -> OpenAIRequest:
    return parse(Dialect.CHAT, body(**{"model": "demo", "messages": [HI], **fields}))


def completion(**fields: object) -> OpenAIRequest:
    return parse(Dialect.COMPLETION, body(**{"model": "demo", "prompt": "Hi", **fields}))


def embedding(**fields: object) -> OpenAIRequest:
    return parse(Dialect.EMBEDDING, body(**{"model": "demo", "input": "Hi", **fields}))


def refusal_of(dialect: Dialect, raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(dialect, raw)
    assert type(caught.value) is InvalidRequest
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


# What is found in a good body


@pytest.mark.parametrize(
    ("dialect", "more", "may"),
    [
        (Dialect.CHAT, {}, True),
        (Dialect.CHAT, {"n": 1, "tools": [TOOL], "tool_choice": "auto"}, True),
        (Dialect.CHAT, {"n": 2}, False),
        (Dialect.CHAT, {"response_format": {"type": "text"}}, True),
        (Dialect.CHAT, {"response_format": {"type": "json_object"}}, False),
        (Dialect.CHAT, {"tools": [TOOL], "tool_choice": "required"}, False),
        (Dialect.CHAT, {"guided_regex": "a*"}, False),
        (Dialect.COMPLETION, {"prompt": ["one"]}, True),
        (Dialect.COMPLETION, {"prompt": ["one", "two"]}, False),
        (Dialect.COMPLETION, {"echo": True}, False),
        (Dialect.COMPLETION, {"suffix": "end"}, False),
    ],
)
def test_an_answer_may_be_gone_on_with_where_its_text_is_all_there_is_to_it(
    dialect: Dialect, more: dict[str, object], may: bool
) -> None:
    base: dict[str, object] = {"messages": [HI]} if dialect is Dialect.CHAT else {"prompt": "Hi"}
    assert parse(dialect, body(**{"model": "demo", **base, **more})).may_continue is may


def test_the_facts_of_a_small_chat() -> None:
    raw = body(model="demo", messages=[HI])
    request = parse(Dialect.CHAT, raw)
    assert request == OpenAIRequest(
        dialect=Dialect.CHAT,
        model="demo",
        stream=False,
        include_usage=False,
        choice_count=1,
        max_output_tokens=0,
        session_id="",
        user="",
        prompt=b"\0user\0Hi",
        body=raw,
        has_logprobs=False,
        has_tools=False,
        is_guided=False,
        shows_prompt=False,
        is_base64=False,
    )
    assert request.body is raw


def test_the_facts_of_a_small_completion() -> None:
    request = completion()
    assert (request.dialect, request.model, request.prompt, request.choice_count) == (
        Dialect.COMPLETION,
        "demo",
        b"Hi",
        1,
    )


def test_the_facts_of_a_small_embedding() -> None:
    request = embedding()
    assert (request.dialect, request.model, request.prompt, request.choice_count, request.stream) == (
        Dialect.EMBEDDING,
        "demo",
        b"Hi",
        1,
        False,
    )
    assert not request.is_base64


def test_the_facts_of_a_full_embedding() -> None:
    request = embedding(input=["one", "two", "three"], encoding_format="base64", dimensions=256, user="ada")
    assert (request.choice_count, request.is_base64) == (3, True)
    assert (request.user, request.session_id) == ("ada", "ada")


def test_what_is_embedded_is_long_but_has_no_prefix() -> None:
    assert (len(embedding(input="x" * 1000).prompt), embedding(input="x" * 1000).prefix) == (1000, b"")
    assert completion(prompt="x" * 1000).prefix == b"x" * 1000


def test_the_facts_of_a_full_chat() -> None:
    request = chat(
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        n=3,
        max_tokens=10,
        logprobs=True,
        top_logprobs=5,
        tools=[TOOL],
        tool_choice="auto",
        user="ada",
    )
    assert request.stream
    assert request.include_usage
    assert request.choice_count == 3
    assert request.max_output_tokens == 10
    assert request.has_logprobs
    assert request.has_tools
    assert not request.is_guided
    assert request.user == "ada"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
        ({}, 0),
    ],
)
def test_max_completion_tokens_wins(fields: dict[str, object], expected: int) -> None:
    assert chat(**fields).max_output_tokens == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"user": "u"}, "u"),
        ({"user": "u", "prompt_cache_key": "k"}, "k"),
        ({"user": "u", "prompt_cache_key": "k", "session_id": "s"}, "s"),
        ({"user": "u", "session_id": 5}, "u"),
        ({}, ""),
    ],
)
def test_the_session_is_the_most_special_name(fields: dict[str, object], expected: str) -> None:
    assert chat(**fields).session_id == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"guided_json": {"type": "object"}},
        {"grammar": 'root ::= "a"'},
        {"structured_outputs": {"regex": "a+"}},
    ],
)
def test_output_that_must_follow_something_is_guided(fields: dict[str, object]) -> None:
    assert chat(**fields).is_guided


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "text"}}, {"tools": [TOOL], "tool_choice": "none"}, {"grammar": None}, {"tools": []}],
)
def test_other_output_is_free(fields: dict[str, object]) -> None:
    assert not chat(**fields).is_guided


@pytest.mark.parametrize("logprobs", [0, 5])
def test_a_completion_asks_for_logprobs_by_number(logprobs: int) -> None:
    assert completion(logprobs=logprobs).has_logprobs


def test_null_means_absent() -> None:
    for dialect, read, prompt in (
        (Dialect.CHAT, chat, "messages"),
        (Dialect.COMPLETION, completion, "prompt"),
        (Dialect.EMBEDDING, embedding, "input"),
    ):
        nulls = dict.fromkeys(set(_RULES[dialect]) - {"model", prompt})
        absent = read()
        assert dataclasses.replace(read(**nulls), body=absent.body) == absent


def test_unknown_fields_and_doubled_keys_pass() -> None:
    raw = b'{"model":"old","model":"demo","messages":[{"role":"user","content":"Hi"}],"top_k":40,"x":{"y":[1,{}]}}'
    assert parse(Dialect.CHAT, raw).model == "demo"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 2.0},
        {"top_p": 1, "frequency_penalty": -2, "presence_penalty": 2.0},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"n": 128},
        {"stop": "END"},
        {"stop": ["a"] * MAX_STOPS},
        {"stop": []},
        {"logit_bias": {"50256": -100, "1": 1.5}},
        {"stream": True, "stream_options": {}},
        {"stream": True, "stream_options": {"include_usage": None, "continuous_usage_stats": False}},
        {"logprobs": True, "top_logprobs": 20},
        {"logprobs": True, "top_logprobs": 0},
        {"tools": []},
        {"tools": [TOOL, {"type": "custom", "custom": {"name": "a"}}]},
        {"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "a"}}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False, "reasoning_effort": "low"},
        {"max_tokens": 2**31 - 1},
    ],
)
def test_good_fields_of_a_chat_are_taken(fields: dict[str, object]) -> None:
    assert chat(**fields).model == "demo"


@pytest.mark.parametrize(
    "fields", [{"best_of": 1}, {"best_of": 3, "n": 3}, {"echo": True, "suffix": "."}, {"logprobs": 20}]
)
def test_good_fields_of_a_completion_are_taken(fields: dict[str, object]) -> None:
    assert completion(**fields).model == "demo"


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ["a"] * MAX_INPUTS},
        {"input": [[1, 2], [3]]},
        {"input": [1, 2, 3]},
        {"encoding_format": "float", "dimensions": 1},
        {"stream": False},
        {"truncate_prompt_tokens": 5, "input_type": "query", "priority": {"x": 1}},
    ],
)
def test_good_fields_of_an_embedding_are_taken(fields: dict[str, object]) -> None:
    assert embedding(**fields).model == "demo"


# What is refused

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]

BAD_FIELDS: list[tuple[dict[str, object], str, str]] = [
    ({"model": 5}, "model", "invalid_type"),
    ({"model": None}, "model", "missing_required_parameter"),
    ({"model": ""}, "model", "missing_required_parameter"),
    ({"model": "x" * 513}, "model", "string_above_max_length"),
    ({"stream": 1}, "stream", "invalid_type"),
    ({"stream": "true"}, "stream", "invalid_type"),
    ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    ({"stream": True, "stream_options": {"x": DEEP}}, "stream_options.x", "invalid_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"n": True}, "n", "invalid_type"),
    ({"n": 1.0}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": "10"}, "max_tokens", "invalid_type"),
    ({"max_tokens": 2**31}, "max_tokens", "integer_above_max_value"),
    ({"max_tokens": 10**30}, "max_tokens", "invalid_type"),
    ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"temperature": 3}, "temperature", "integer_above_max_value"),
    ({"temperature": False}, "temperature", "invalid_type"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": 1.01}, "top_p", "decimal_above_max_value"),
    ({"top_p": [1]}, "top_p", "invalid_type"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "decimal_above_max_value"),
    ({"presence_penalty": -3}, "presence_penalty", "integer_below_min_value"),
    ({"seed": 2**63}, "seed", "integer_above_max_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"stop": 5}, "stop", "invalid_type"),
    ({"stop": ""}, "stop", "empty_string"),
    ({"stop": ["a", ""]}, "stop[1]", "empty_string"),
    ({"stop": ["a", 5]}, "stop[1]", "invalid_type"),
    ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop", "array_above_max_length"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"token": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"٣": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "integer_above_max_value"),
    ({"logit_bias": {"1": None}}, "logit_bias.1", "invalid_type"),
    ({"response_format": "json"}, "response_format", "invalid_type"),
    ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
    ({"response_format": {"type": 5}}, "response_format.type", "invalid_type"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
    ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format.json_schema", "invalid_type"),
    ({"response_format": {"type": "text", "x": DEEP}}, "response_format", "invalid_value"),
    ({"user": 5}, "user", "invalid_type"),
    ({"user": "x" * 513}, "user", "string_above_max_length"),
    ({"prompt_cache_key": {}}, "prompt_cache_key", "invalid_type"),
    ({"extra": DEEP}, "extra", "invalid_value"),
    ({"e" * 500: DEEP}, "e" * 64, "invalid_value"),
]

BAD_CHAT_FIELDS: list[tuple[dict[str, object], str, str]] = [
    *BAD_FIELDS,
    ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
    ({"logprobs": 5}, "logprobs", "invalid_type"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "integer_below_min_value"),
    ({"tools": {}}, "tools", "invalid_type"),
    ({"tools": [5]}, "tools[0]", "invalid_type"),
    ({"tools": [TOOL, {}]}, "tools[1].type", "missing_required_parameter"),
    ({"tools": [{"type": 5}]}, "tools[0].type", "invalid_type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function", "invalid_type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter"),
    ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name", "invalid_type"),
    ({"tools": [{**TOOL, "x": DEEP}]}, "tools", "invalid_value"),
    ({"tool_choice": 5}, "tool_choice", "invalid_type"),
    ({"tool_choice": "always"}, "tool_choice", "invalid_value"),
    ({"tool_choice": {}}, "tool_choice.type", "missing_required_parameter"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "missing_required_parameter"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", "invalid_type"),
    ({"reasoning_effort": 5}, "reasoning_effort", "invalid_type"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": "Hi"}, "messages", "invalid_type"),
    ({"messages": {}}, "messages", "invalid_type"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": [HI, "Hi"]}, "messages[1]", "invalid_type"),
    ({"messages": [None]}, "messages[0]", "invalid_type"),
]

BAD_COMPLETION_FIELDS: list[tuple[dict[str, object], str, str]] = [
    *BAD_FIELDS,
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": ["a"] * 9, "n": 128}, "prompt", "array_above_max_length"),
    ({"logprobs": True}, "logprobs", "invalid_type"),
    ({"logprobs": 21}, "logprobs", "integer_above_max_value"),
    ({"echo": 1}, "echo", "invalid_type"),
    ({"suffix": 1}, "suffix", "invalid_type"),
    ({"best_of": "2"}, "best_of", "invalid_type"),
]


BAD_EMBEDDING_FIELDS: list[tuple[dict[str, object], str, str]] = [
    ({"model": 5}, "model", "invalid_type"),
    ({"model": ""}, "model", "missing_required_parameter"),
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", "array_above_max_length"),
    ({"encoding_format": "bytes"}, "encoding_format", "invalid_value"),
    ({"encoding_format": 5}, "encoding_format", "invalid_type"),
    ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
    ({"dimensions": 1.5}, "dimensions", "invalid_type"),
    ({"dimensions": "64"}, "dimensions", "invalid_type"),
    ({"stream": True}, "stream", "unknown_parameter"),
    ({"stream": "no"}, "stream", "invalid_type"),
    ({"user": 5}, "user", "invalid_type"),
    ({"extra": DEEP}, "extra", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD_CHAT_FIELDS)
def test_bad_fields_of_a_chat_are_refused_by_name(fields: dict[str, object], param: str, code: str) -> None:
    error = refusal_of(Dialect.CHAT, body(**{"model": "demo", "messages": [HI], **fields}))
    assert (error.param, error.code) == (param, code)
    assert param in error.message


@pytest.mark.parametrize(("fields", "param", "code"), BAD_COMPLETION_FIELDS)
def test_bad_fields_of_a_completion_are_refused_by_name(fields: dict[str, object], param: str, code: str) -> None:
    error = refusal_of(Dialect.COMPLETION, body(**{"model": "demo", "prompt": "Hi", **fields}))
    assert (error.param, error.code) == (param, code)
    assert param in error.message


@pytest.mark.parametrize(("fields", "param", "code"), BAD_EMBEDDING_FIELDS)
def test_bad_fields_of_an_embedding_are_refused_by_name(fields: dict[str, object], param: str, code: str) -> None:
    error = refusal_of(Dialect.EMBEDDING, body(**{"model": "demo", "input": "Hi", **fields}))
    assert (error.param, error.code) == (param, code)
    assert param in error.message


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_chat_needs_model_and_messages(name: str) -> None:
    fields = {"model": "demo", "messages": [HI]}
    del fields[name]
    error = refusal_of(Dialect.CHAT, body(**fields))
    assert error.message == f"Missing required parameter: '{name}'."
    assert (error.param, error.code) == (name, "missing_required_parameter")


@pytest.mark.parametrize(
    ("dialect", "fields", "param"),
    [
        (Dialect.CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (Dialect.CHAT, {"stream": False, "stream_options": {}}, "stream_options"),
        (Dialect.COMPLETION, {"stream_options": {}}, "stream_options"),
        (Dialect.CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (Dialect.CHAT, {"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        (Dialect.CHAT, {"tool_choice": "required"}, "tool_choice"),
        (Dialect.CHAT, {"tool_choice": {"type": "function", "function": {"name": "a"}}, "tools": []}, "tool_choice"),
        (Dialect.COMPLETION, {"best_of": 2}, "best_of"),
        (Dialect.COMPLETION, {"best_of": 3, "n": 2}, "best_of"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(dialect: Dialect, fields: dict[str, object], param: str) -> None:
    good = {"messages": [HI]} if dialect is Dialect.CHAT else {"prompt": "Hi"}
    error = refusal_of(dialect, body(model="demo", **good, **fields))
    assert error.param == param
    assert f"'{param}'" in error.message


def test_messages_read_as_openai_writes_them() -> None:
    def message_for(**fields: object) -> str:
        return refusal_of(Dialect.CHAT, body(**{"model": "demo", "messages": [HI], **fields})).message

    assert message_for(max_tokens="10") == (
        "Invalid type for 'max_tokens': expected an integer, but got a string instead."
    )
    assert message_for(temperature=3.5) == (
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3.5 instead."
    )
    assert message_for(messages=[{"role": "robot"}]) == (
        "Invalid value for 'messages[0].role'. Supported values are: "
        "'system', 'developer', 'user', 'assistant', 'tool', 'function'."
    )


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "line 1 column 1"),
        (b'{"model": "demo",\n "messages": [SECRET]}', "line 2 column 15"),
        (b'{"model": "SECRET"', "line 1 column 19"),
        (b'{"temperature": NaN}', "line 1 column 17"),
        (b'{"temperature": -Infinity}', "line 1 column"),
        (b'{"temperature": 1e999}', "line 1 column 17"),
        (b'{"model": "\\ud800 SECRET"}', "line 1 column"),
        (b'{"model": "\xff SECRET"}', "invalid UTF-8 at byte 11"),
        (b'{"model": "\xed\xa0\x80 SECRET"}', "invalid UTF-8 at byte 11"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
        (b"[" * 100_000, "line 1 column"),
        (b'{"a":' * 100_000, "line 1 column"),
        (b"{} {}", "line 1 column 4"),
    ],
)
def test_what_is_no_json_is_located_and_not_repeated(raw: bytes, where: str) -> None:
    error = refusal_of(Dialect.CHAT, raw)
    assert error.message.startswith("We could not parse the JSON body of your request (")
    assert where in error.message
    assert "SECRET" not in error.message
    assert len(error.message) < 200


@pytest.mark.parametrize("raw", [b"[]", b"null", b"5", b'"text"', b"true"])
def test_a_body_is_an_object(raw: bytes) -> None:
    assert refusal_of(Dialect.CHAT, raw).message == "The request body must be a JSON object."


def test_the_number_of_choices_is_bounded() -> None:
    assert completion(prompt=[[1], [2, 3]], n=3).choice_count == 6
    assert completion(prompt=["a"] * MAX_CHOICES).choice_count == MAX_CHOICES


# Nothing but InvalidRequest, whatever comes

ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    ATOMS | st.sampled_from(["user", "assistant", "function", "text", "image_url", "auto", "json_schema"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "function", "name", "arguments", "tool_calls", "image_url", "url"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FUZZ = settings(derandomize=True, max_examples=60, deadline=None)


def survives(dialect: Dialect, raw: bytes) -> None:
    with suppress(InvalidRequest):
        assert parse(dialect, raw).body is raw


@pytest.mark.parametrize("dialect", Dialect)
@FUZZ
@given(raw=st.binary(max_size=64))
def test_any_bytes(dialect: Dialect, raw: bytes) -> None:
    survives(dialect, raw)


@pytest.mark.parametrize("dialect", Dialect)
@FUZZ
@given(data=st.data())
def test_any_json_in_any_field(dialect: Dialect, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(_RULES[dialect]))
    good: dict[str, object] = {"model": "demo", "messages": [HI], "prompt": "Hi", "input": "Hi"}
    fields = {**good, **data.draw(st.dictionaries(names, VALUES, max_size=3))}
    survives(dialect, json.dumps(fields).encode())


@FUZZ
@given(messages=st.lists(VALUES, max_size=3))
def test_any_messages(messages: list[object]) -> None:
    survives(Dialect.CHAT, body(model="demo", messages=messages))
