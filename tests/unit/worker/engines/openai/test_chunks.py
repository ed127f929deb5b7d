"""Servers' shapes become our words; what has another shape counts as absent."""

from __future__ import annotations

import pytest

from lbcore.generation import FinishReason, TokenLogprob, ToolCallDelta, TopLogprob
from worker.engines.openai.chunks import IMPOSSIBLE, finish_reason, ids_of, logprobs, text_of, tool_calls


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, None),
        ("", None),
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("eos_token", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("function_call", FinishReason.TOOL_CALLS),
        ("max_tokens", FinishReason.LENGTH),
        ("who knows", FinishReason.STOP),
        (7, FinishReason.STOP),
    ],
)
def test_reasons(said: object, meant: FinishReason | None) -> None:
    assert finish_reason(said) is meant


def test_what_is_of_another_type_is_absent() -> None:
    assert (text_of(None), text_of(5), ids_of(None), tool_calls("x"), tool_calls(["x"])) == ("", "", (), (), ())
    assert logprobs([], 3) == logprobs({"tokens": 5}, 3) == ()


def test_tool_calls_in_parts_and_whole() -> None:
    part = {"index": 2, "id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a'}}
    assert tool_calls([part, {"index": 2, "function": {"arguments": '":1}'}}]) == (
        ToolCallDelta(2, "c", "look", '{"a'),
        ToolCallDelta(2, "", "", '":1}'),
    )
    assert tool_calls([{"function": {"name": "look", "arguments": {"a": 1}}}, {"id": "d"}]) == (
        ToolCallDelta(0, "", "look", '{"a":1}'),
        ToolCallDelta(1, "d"),
    )


def test_log_probabilities_of_a_chat() -> None:
    other = {"token": "b", "logprob": None, "bytes": None}
    token = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [other, {"token": "c", "logprob": -9}]}
    assert logprobs({"content": [token]}, 1) == (
        TokenLogprob("é", -0.5, "é".encode(), (TopLogprob("b", IMPOSSIBLE, b"b"),)),
    )
    assert logprobs({"content": [token]}, 0)[0].top == ()
    assert logprobs({"content": [token]}, None) == ()


def test_log_probabilities_of_a_completion() -> None:
    said = {
        "tokens": ["a", "é"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{"x": -3.0, "a": -0.5, "y": -2.0}, None],
        "text_offset": [0, 1],
    }
    assert logprobs(said, 2) == (
        TokenLogprob("a", -0.5, b"a", (TopLogprob("a", -0.5, b"a"), TopLogprob("y", -2.0, b"y"))),
        TokenLogprob("é", IMPOSSIBLE, "é".encode()),
    )
    assert logprobs({"tokens": ["a"]}, 2) == (TokenLogprob("a", IMPOSSIBLE, b"a"),)
