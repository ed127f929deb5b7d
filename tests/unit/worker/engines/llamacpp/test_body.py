"""Bodies on their way to llama.cpp: what is added, what stays as it was, what is refused by name."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.fields import MAX_STOP_STRINGS
from worker.engines.llamacpp.body import DEFAULT_COMPLETION_TOKENS, Ask, Limits, read_body, splice

LIMITS = Limits(choices_per_prompt=4, tools=True)
MESSAGES = [{"role": "user", "content": "hi"}]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def read(dialect: Dialect, body: bytes | dict[str, Any], limits: Limits = LIMITS) -> Ask:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return read_body(GenerationRequest("r", dialect, raw), limits)


def chat(limits: Limits = LIMITS, /, **fields: Any) -> Ask:
    return read(Dialect.CHAT, {"messages": MESSAGES, **fields}, limits)


def complete(**fields: Any) -> Ask:
    return read(Dialect.COMPLETION, {"prompt": "hi", **fields})


def refusal(**fields: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    return caught.value.param


def test_every_digit_reaches_llama_cpp() -> None:
    body = (
        b'{"messages": [{"role":"user","content":"hi"}], "temperature" : 0.30000000000000004, "x": 1e-7, "y": 12.50 }'
    )
    sent = chat_bytes = read(Dialect.CHAT, body).body
    assert sent.startswith(body.rstrip(b" }"))
    assert orjson.loads(chat_bytes)["stream"] is True


def test_what_the_client_says_of_streaming_does_not_matter() -> None:
    sent = orjson.loads(chat(stream=False, stream_options={"include_usage": False}, return_progress=False).body)
    assert (sent["stream"], sent["stream_options"], sent["return_progress"]) == (True, {"include_usage": True}, True)


@given(
    st.dictionaries(st.text(), st.integers(0, 9), max_size=4),
    st.dictionaries(st.text(), st.integers(0, 9), min_size=1, max_size=4),
    st.sampled_from(["", " ", "\r\n\t "]),
)
def test_splicing_is_updating(fields: dict[str, int], added: dict[str, int], space: str) -> None:
    body = orjson.dumps(fields)
    loose = b"%s{%s%s%s}%s" % (space.encode(), space.encode(), body[1:-1], space.encode(), space.encode())
    assert orjson.loads(splice(loose, added)) == {**fields, **added}


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"n_predict": 9}, 9),
    ],
)
def test_a_chat_is_limited_by_the_newest_name(fields: dict[str, Any], limit: int | None) -> None:
    ask = chat(**fields)
    assert (ask.max_tokens, ask.explicit_limit) == (limit, limit is not None)
    assert orjson.loads(ask.body)["n_predict"] == (limit or -1)


def test_a_completion_has_a_limit_of_its_own() -> None:
    ask = complete()
    assert (ask.max_tokens, ask.explicit_limit) == (DEFAULT_COMPLETION_TOKENS, False)
    assert orjson.loads(ask.body)["n_predict"] == DEFAULT_COMPLETION_TOKENS


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", ("x",)),
        ("", ("",)),
        ([1, 2], ([1, 2],)),
        (["a", "b"], ("a", "b")),
        ([[1], [2, 3]], ([1], [2, 3])),
        (["a", [1]], ("a", [1])),
    ],
)
def test_prompts_come_in_four_forms(prompt: object, prompts: tuple[object, ...]) -> None:
    ask = complete(prompt=prompt, n=2)
    assert ask.prompts == prompts
    assert ask.choices == 2 * len(prompts)


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], [True], ["a", 1], [1, "a"], [None], {"text": "x"}])
def test_no_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("wanted", "sent", "top"),
    [({}, None, None), ({"logprobs": False}, False, None), ({"logprobs": True}, True, 0)],
)
def test_log_probabilities_of_a_chat(wanted: dict[str, Any], sent: bool | None, top: int | None) -> None:
    ask = chat(**wanted)
    assert (orjson.loads(ask.body).get("logprobs"), ask.top_logprobs) == (sent, top)


def test_log_probabilities_without_alternatives_are_asked_for_with_one() -> None:
    assert orjson.loads(chat(logprobs=True).body)["top_logprobs"] == 1
    assert orjson.loads(chat(logprobs=True, top_logprobs=3).body)["top_logprobs"] == 3
    assert orjson.loads(complete(logprobs=0).body)["logprobs"] == 1
    assert complete(logprobs=0).top_logprobs == 0


def test_stop_strings_are_kept_from_llama_cpp() -> None:
    for stop in ("end", ["end", "\n"], ["end"] * MAX_STOP_STRINGS):
        ask = chat(stop=stop)
        assert ask.stop == tuple([stop] if isinstance(stop, str) else stop)
        assert orjson.loads(ask.body)["stop"] == []


def test_a_tool_is_forced_by_leaving_only_that() -> None:
    ask = chat(tools=[tool("look"), tool("go")], tool_choice={"type": "function", "function": {"name": "go"}})
    sent = orjson.loads(ask.body)
    assert (sent["tools"], sent["tool_choice"]) == ([tool("go")], "required")


def test_a_forced_tool_too_deep_to_write_is_refused() -> None:
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    raw = b'{"messages":[{"role":"user"}],"tool_choice":{"function":{"name":"go"}},"tools":[{"function":{"name":"go",'
    with pytest.raises(InvalidRequest) as caught:
        read(Dialect.CHAT, raw + b'"parameters":' + deep + b"}}]}")
    assert caught.value.param == "tools"


@pytest.mark.parametrize("choice", [None, "none", "auto", "required"])
def test_other_choices_of_tools_are_left_to_llama_cpp(choice: str | None) -> None:
    sent = orjson.loads(chat(tools=[tool("look")], tool_choice=choice).body)
    assert (sent["tools"], sent["tool_choice"]) == ([tool("look")], choice)


def test_no_tool_can_be_forced_on_a_template_without_tools() -> None:
    limits = Limits(choices_per_prompt=1, tools=False)
    assert chat(limits, tools=[tool("look")], tool_choice="auto")
    with pytest.raises(InvalidRequest) as caught:
        chat(limits, tools=[tool("look")], tool_choice="required")
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [*MESSAGES, {"content": "x"}]}, "messages[1].role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": "x"}, "max_completion_tokens"),
        ({"n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"id_slot": 0}, "id_slot"),
        ({"n_cmpl": 2}, "n_cmpl"),
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * (MAX_STOP_STRINGS + 1)}, "stop"),
        ({"logprobs": True, "post_sampling_probs": True}, "post_sampling_probs"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [1], "tool_choice": {"function": {"name": "go"}}}, "tool_choice"),
        ({"tools": [tool("look")], "tool_choice": {"function": {"name": "go"}}}, "tool_choice"),
        ({"tools": [tool("look")], "tool_choice": 7}, "tool_choice"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields) == param


@pytest.mark.parametrize("field", ["echo", "suffix", "min_tokens", "functions", "best_of"])
def test_a_field_that_asks_for_nothing_is_not_refused(field: str) -> None:
    assert chat(**{field: None})


def test_what_is_to_be_embedded_is_refused_by_the_model_s_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(Dialect.EMBEDDING, b'{"input": "Hi"}')
    assert caught.value.param == "model"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"7", b'"x"', b"\xff", b'{"messages": NaN}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    for dialect in Dialect:
        with pytest.raises(InvalidRequest):
            read(dialect, body)
