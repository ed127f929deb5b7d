from __future__ import annotations

import struct
from typing import Any

import pytest

from gateway.prompt import chat_prompt, completion_prompt, embedding_inputs
from lbcore.errors import InvalidRequest

HI = {"role": "user", "content": "Hi"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]


def conversation(*messages: object) -> bytes:
    return chat_prompt(list(messages), None)


def test_a_longer_conversation_begins_with_the_shorter_one() -> None:
    first = conversation({"role": "system", "content": "Be kind."}, HI)
    second = conversation({"role": "system", "content": "Be kind."}, HI, {"role": "assistant", "content": "Hello!"}, HI)
    assert second.startswith(first)


def test_other_roles_are_other_bytes() -> None:
    assert conversation(HI) != conversation({**HI, "role": "system"})


def test_text_parts_are_the_same_as_text() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert conversation({"role": "user", "content": parts}) == conversation(HI)


def test_tools_come_first_and_count() -> None:
    assert chat_prompt([HI], [TOOL]).endswith(conversation(HI))
    assert chat_prompt([HI], [TOOL]).startswith(b'[{"type":"function"')


def test_media_count_as_a_short_digest() -> None:
    big = {"type": "image_url", "image_url": {"url": "data:," + "A" * 10_000}}
    with_small, with_big = (conversation({"role": "user", "content": [part]}) for part in (PICTURE, big))
    assert with_small != with_big
    assert len(with_small) == len(with_big) < 50


def test_calls_and_names_count_and_null_does_not() -> None:
    said: dict[str, object] = {"role": "assistant", "content": "Hi"}
    plain = conversation(said)
    assert conversation({**said, "tool_calls": None, "refusal": None}) == plain
    assert conversation({**said, "tool_calls": [CALL]}) != plain
    assert conversation({**said, "name": "bob"}) != plain


@pytest.mark.parametrize(
    ("prompt", "expected", "count"),
    [
        ("Grüße", "Grüße".encode(), 1),
        ("", b"", 1),
        (["a", "b"], b"a\0b", 2),
        ([1, 2, 2**32 - 1], struct.pack("<3I", 1, 2, 2**32 - 1), 1),
        ([[1], [2, 3]], struct.pack("<I", 1) + b"\0" + struct.pack("<2I", 2, 3), 2),
    ],
)
def test_every_kind_of_prompt_has_bytes(prompt: object, expected: bytes, count: int) -> None:
    assert completion_prompt(prompt) == (expected, count)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "a", "input": "b"}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "a", "arguments": ""}},
        {"role": "assistant", "content": [], "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "tool", "content": "20 degrees", "tool_call_id": "call_1"},
        {"role": "tool", "content": [{"type": "text", "text": "20"}], "tool_call_id": "call_1"},
        {"role": "function", "name": "weather", "content": None},
        {"role": "user", "content": "", "name": "ada"},
        {"role": "user", "content": [PICTURE, {"type": "text", "text": "What is it?"}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "1"}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]},
    ],
)
def test_good_messages_are_taken(message: dict[str, object]) -> None:
    assert conversation(HI, message).startswith(conversation(HI))


BAD_MESSAGES: list[tuple[dict[str, object], str, str]] = [
    ({"content": "x"}, ".role", "missing_required_parameter"),
    ({"role": None, "content": "x"}, ".role", "missing_required_parameter"),
    ({"role": 5, "content": "x"}, ".role", "invalid_type"),
    ({"role": ["user"], "content": "x"}, ".role", "invalid_type"),
    ({"role": "robot", "content": "x"}, ".role", "invalid_value"),
    ({"role": "user"}, ".content", "missing_required_parameter"),
    ({"role": "user", "content": None}, ".content", "invalid_type"),
    ({"role": "user", "content": 5}, ".content", "invalid_type"),
    ({"role": "user", "content": {}}, ".content", "invalid_type"),
    ({"role": "user", "content": []}, ".content", "empty_array"),
    ({"role": "assistant"}, ".content", "missing_required_parameter"),
    ({"role": "assistant", "content": None}, ".content", "invalid_type"),
    ({"role": "tool", "content": None, "tool_call_id": "1"}, ".content", "invalid_type"),
    ({"role": "user", "content": ["x"]}, ".content[0]", "invalid_type"),
    ({"role": "user", "content": [{}]}, ".content[0].type", "missing_required_parameter"),
    ({"role": "user", "content": [{"type": 5}]}, ".content[0].type", "invalid_type"),
    ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text", "missing_required_parameter"),
    ({"role": "user", "content": [{"type": "text", "text": 5}]}, ".content[0].text", "invalid_type"),
    ({"role": "user", "content": [{"type": "image_url"}]}, ".content[0].image_url", "missing_required_parameter"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ".content[0].image_url", "invalid_type"),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
        ".content[0].image_url.url",
        "missing_required_parameter",
    ),
    ({"role": "user", "content": [{"type": "odd", "x": DEEP}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": "x", "name": 5}, ".name", "invalid_type"),
    ({"role": "user", "content": "x", "odd": DEEP}, "", "invalid_value"),
    ({"role": "tool", "content": "x", "tool_call_id": 5}, ".tool_call_id", "invalid_type"),
    ({"role": "assistant", "tool_calls": {}}, ".tool_calls", "invalid_type"),
    ({"role": "assistant", "tool_calls": ["x"]}, ".tool_calls[0]", "invalid_type"),
    ({"role": "assistant", "tool_calls": [{}]}, ".tool_calls[0].function", "missing_required_parameter"),
    ({"role": "assistant", "tool_calls": [{"function": 5}]}, ".tool_calls[0].function", "invalid_type"),
    (
        {"role": "assistant", "tool_calls": [{"function": {"name": "a"}}]},
        ".tool_calls[0].function.arguments",
        "missing_required_parameter",
    ),
    (
        {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}]},
        ".tool_calls[0].function.arguments",
        "invalid_type",
    ),
]


@pytest.mark.parametrize(("message", "param", "code"), BAD_MESSAGES)
def test_bad_messages_are_refused_by_name(message: dict[str, object], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        conversation(HI, message)
    assert (caught.value.param, caught.value.code) == (f"messages[1]{param}", code)
    assert f"messages[1]{param}" in caught.value.message


@pytest.mark.parametrize(
    ("prompt", "param", "code"),
    [
        (5, "prompt", "invalid_type"),
        ({}, "prompt", "invalid_type"),
        ([], "prompt", "empty_array"),
        (None, "prompt", "missing_required_parameter"),
        (["a", 5], "prompt[1]", "invalid_type"),
        ([1, "a"], "prompt[1]", "invalid_type"),
        ([1, True], "prompt[1]", "invalid_type"),
        ([True], "prompt[0]", "invalid_type"),
        ([1.5], "prompt[0]", "invalid_type"),
        ([None], "prompt[0]", "invalid_type"),
        ([-1], "prompt", "invalid_value"),
        ([2**32], "prompt", "invalid_value"),
        ([[1], []], "prompt[1]", "empty_array"),
        ([[1], ["a"]], "prompt[1][0]", "invalid_type"),
        ([[1], "a"], "prompt[1]", "invalid_type"),
    ],
)
def test_bad_prompts_are_refused_by_name(prompt: object, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion_prompt(prompt)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "ho"], [1, 2], [[1, 2], [3]]])
def test_what_is_embedded_is_the_bytes_that_a_prompt_of_it_would_be(prompt: object) -> None:
    assert embedding_inputs(prompt) == completion_prompt(prompt)


@pytest.mark.parametrize(
    ("inputs", "param", "code"),
    [
        (5, "input", "invalid_type"),
        ({}, "input", "invalid_type"),
        ([], "input", "empty_array"),
        ("", "input", "empty_string"),
        (["a", ""], "input[1]", "empty_string"),
        (None, "input", "missing_required_parameter"),
        (["a", 5], "input[1]", "invalid_type"),
        ([1, "a"], "input[1]", "invalid_type"),
        ([-1], "input", "invalid_value"),
        ([[1], []], "input[1]", "empty_array"),
        ([[1], "a"], "input[1]", "invalid_type"),
        (["a"] * 2049, "input", "array_above_max_length"),
    ],
)
def test_bad_inputs_are_refused_by_name(inputs: object, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        embedding_inputs(inputs)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert f"'{param}'" in caught.value.message
