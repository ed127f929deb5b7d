"""OpenAI bodies as the simulated engine reads them: what is accepted, what is refused and under which name."""

from __future__ import annotations

import orjson
import pytest

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.sim.body import Ask, Prompt, read_body


def chat(content: object = "Hello", **fields: object) -> Ask:
    body = {"model": "sim", "messages": [{"role": "user", "content": content}], **fields}
    return read_body(GenerationRequest("r", Dialect.CHAT, orjson.dumps(body)))


def completion(prompt: object = "Hello", **fields: object) -> Ask:
    return read_body(GenerationRequest("r", Dialect.COMPLETION, orjson.dumps({"prompt": prompt, **fields})))


def one(ask: Ask) -> Prompt:
    (prompt,) = ask.prompts
    return prompt


def test_a_token_is_four_bytes_of_utf_8_and_the_last_one_may_be_shorter() -> None:
    assert one(completion("12345678")).tokens == 2
    assert one(completion("123456789")).tokens == 3
    assert one(completion("日本")).tokens == 2
    assert one(completion("")).tokens == 1


def test_token_ids_are_tokens() -> None:
    assert one(completion([5, 6, 2**40])).tokens == 3


def test_a_list_of_prompts_is_several() -> None:
    assert completion(["Hello"]) == completion("Hello")
    assert [prompt.tokens for prompt in completion(["12345678", [1, 2, 3], "a"]).prompts] == [2, 3, 1]


def test_prompts_times_choices_are_bounded() -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(["a"] * 65, n=2)
    assert caught.value.param == "prompt"


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert chat(parts) == chat("Hello")


def test_an_assistant_that_called_tools_needs_no_content() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    ask = read_body(GenerationRequest("r", Dialect.CHAT, orjson.dumps({"messages": messages})))
    assert b'"name":"f"' in one(ask).data


def test_tools_are_a_part_of_the_prompt() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert one(chat(tools=tools)).tokens > one(chat()).tokens


def test_only_whole_blocks_are_hashed() -> None:
    assert len(one(completion("x" * 63)).block_hashes(16)) == 0
    assert len(one(completion("x" * 64)).block_hashes(16)) == 1
    assert len(one(completion(list(range(40)))).block_hashes(16)) == 2


def test_equal_prefixes_have_equal_hashes_and_a_hash_depends_on_all_before_it() -> None:
    short = one(completion("a" * 64 + "b" * 64)).block_hashes(16)
    longer = one(completion("a" * 64 + "b" * 64 + "c" * 64)).block_hashes(16)
    other = one(completion("x" * 64 + "b" * 64)).block_hashes(16)
    assert longer[:2] == short
    assert not set(short) & set(other)


def test_text_and_token_ids_never_share_a_block_or_an_answer() -> None:
    ids = one(completion([int.from_bytes(b"aaaaaaaa", "little")] * 8))
    text = one(completion("a" * 64))
    assert ids.data == text.data
    assert not set(ids.block_hashes(8)) & set(text.block_hashes(16))
    assert ids.answer_key(0, 0) != text.answer_key(0, 0)


def test_an_answer_depends_on_both_seeds_and_the_prompt() -> None:
    prompt, other = Prompt(b"a"), Prompt(b"b")
    keys = [prompt.answer_key(0, 0), prompt.answer_key(1, 0), prompt.answer_key(0, 1), other.answer_key(0, 0)]
    assert len(set(keys)) == 4


def test_a_talk_that_goes_on_keeps_its_prefix() -> None:
    first = {"role": "user", "content": "q" * 200}
    later = [first, {"role": "assistant", "content": "a"}, {"role": "user", "content": "more"}]
    begun = one(chat(first["content"])).block_hashes(16)
    gone_on = one(read_body(GenerationRequest("r", Dialect.CHAT, orjson.dumps({"messages": later})))).block_hashes(16)
    assert begun
    assert gone_on[: len(begun)] == begun


def test_the_newer_name_of_the_limit_wins_in_chat() -> None:
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert completion(max_tokens=5, max_completion_tokens=7).max_tokens == 5
    assert chat().max_tokens is None


def test_log_probabilities_are_asked_for_differently_in_the_two_dialects() -> None:
    assert chat().top_logprobs is None
    assert chat(logprobs=False).top_logprobs is None
    assert chat(logprobs=True).top_logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).top_logprobs == 3
    assert completion(logprobs=2).top_logprobs == 2
    assert completion(logprobs=0).top_logprobs == 0


def test_one_stop_string_may_stand_alone() -> None:
    assert chat(stop="end").stop == ("end",)
    assert chat(stop=["a", "b"]).stop == ("a", "b")
    assert chat(stop=None).stop == ()


def test_fields_without_effect_are_let_through() -> None:
    plain = chat()
    ignored = {
        "temperature": 0.5,
        "top_p": 1,
        "user": "u",
        "stream": True,
        "ignore_eos": True,
        "something_new": {"a": 1},
    }
    neutral = {"response_format": {"type": "text"}, "tool_choice": "auto", "logit_bias": {}, "seed": None, "n": 1}
    assert chat(**ignored, **neutral) == plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "5"),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_completion_tokens", -1),
        ("n", 0),
        ("n", 1000),
        ("n", "2"),
        ("best_of", 3),
        ("seed", "7"),
        ("seed", 1.5),
        ("stop", 5),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 17),
        ("temperature", "hot"),
        ("top_p", True),
        ("stream", "yes"),
        ("ignore_eos", 1),
        ("logprobs", "yes"),
        ("top_logprobs", 2),
        ("response_format", {"type": "json_object"}),
        ("tool_choice", "required"),
        ("logit_bias", {"5": 1}),
        ("structured_outputs", {"json": {}}),
    ],
)
def test_what_makes_no_sense_or_cannot_be_done_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**{field: value})
    assert caught.value.param == field
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize(
    "prompt",
    [
        b"null",
        b"5",
        b"{}",
        b"[]",
        b'["", 1]',
        b'[1, "a"]',
        b"[[]]",
        b"[[1], [-1]]",
        b"[1, -1]",
        b"[true]",
        b"[1.5]",
        b"[1, 18446744073709551616]",
    ],
)
def test_a_prompt_that_is_none_is_refused(prompt: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_body(GenerationRequest("r", Dialect.COMPLETION, b'{"prompt": ' + prompt + b"}"))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hello", "messages"),
        (["Hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0]"),
    ],
)
def test_messages_that_are_none_are_refused_where_they_fail(messages: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_body(GenerationRequest("r", Dialect.CHAT, orjson.dumps({"messages": messages})))
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_body(GenerationRequest("r", Dialect.CHAT, body))
