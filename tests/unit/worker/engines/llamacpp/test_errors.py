"""llama.cpp's errors, as it words them, and what they become."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lbcore.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, LoadBalancerError
from worker.engines.llamacpp.body import Ask
from worker.engines.llamacpp.errors import error_from_body, error_from_json

ASK = Ask("/v1/chat/completions", b"{}", "messages", ("",), 1, None, False, None, ())


def error(message: str, code: int = 400, **facts: Any) -> LoadBalancerError:
    return error_from_json({"error": {"code": code, "message": message, **facts}}, code, ASK)


@pytest.mark.parametrize(
    ("code", "message", "param"),
    [
        (400, "Field 'temperature': [json.exception.type_error.302] type must be number, but is string", "temperature"),
        (400, "Field 'n': Value must be between 1 <= value <= 4, but got 6", "n"),
        (400, "Prompt contains invalid tokens", "messages"),
        (400, "Failed to initialize samplers: failed to parse grammar", "grammar"),
        (400, "JSON schema error at #: unrecognized type foo", "response_format"),
        (400, "Invalid tool_choice: bogus", "tool_choice"),
        (400, "something quite new", None),
        (500, 'Failed to parse messages: Missing \'role\' in message: {"content":"x"}', "messages"),
        (500, "image input is not supported - hint: you may need to provide the mmproj", "messages"),
        (500, "Unknown reasoning format: tool", "reasoning_format"),
    ],
)
def test_what_the_client_did_wrong_names_the_field(code: int, message: str, param: str | None) -> None:
    refused = error(message, code)
    assert type(refused) is InvalidRequest
    assert refused.param == param


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers() -> None:
    refused = error("too long", type="exceed_context_size_error", n_prompt_tokens=600, n_ctx=512)
    assert isinstance(refused, ContextLengthExceeded)
    assert "600" in refused.message
    assert "512" in refused.message


@pytest.mark.parametrize("message", ["Compute error.", "Context size has been exceeded.", ""])
def test_what_llama_cpp_did_wrong_may_be_tried_elsewhere(message: str) -> None:
    assert isinstance(error(message, 500), EngineFailed)


@pytest.mark.parametrize("answer", [None, 7, {}, {"error": "text"}, {"error": None}, []])
def test_an_error_of_another_shape_is_the_engines(answer: object) -> None:
    assert isinstance(error_from_json(answer, 503, ASK), EngineFailed)


def test_the_body_of_an_answer_is_read_as_far_as_it_is_json() -> None:
    assert isinstance(error_from_body(b"<html>", 500, ASK), EngineFailed)
    body = orjson.dumps({"error": {"code": 400, "message": "'messages' is required"}})
    assert isinstance(error_from_body(body, 400, ASK), InvalidRequest)


def test_what_llama_cpp_quotes_of_the_request_is_left_out() -> None:
    quoting = 'Failed to parse tools: Missing tool type: {"secret":1}; tools = [\n  {"secret": 1}\n]'
    assert error(quoting, 500).message == "llama.cpp refused the request: Failed to parse tools: Missing tool type."
    unknown = error("Unknown reasoning format: secret", 500).message
    assert unknown == "llama.cpp refused the request: Unknown reasoning format."
