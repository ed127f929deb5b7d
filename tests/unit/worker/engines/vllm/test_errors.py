"""What vLLM's errors become."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lbcore.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    ModelNotFound,
    Saturated,
)
from worker.engines.vllm.errors import MAX_MESSAGE, error_from_response, error_from_validation


def mapped(message: str, code: int = 400, param: str | None = None) -> LoadBalancerError:
    return error_from_response(SimpleNamespace(message=message, code=code, param=param), "messages")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(400, InvalidRequest), (404, ModelNotFound), (429, Saturated), (503, Saturated), (500, EngineFailed)],
)
def test_the_status_decides(code: int, kind: type[LoadBalancerError]) -> None:
    assert type(mapped("No.", code)) is kind


def test_a_prompt_beyond_the_context_is_refused_with_vllms_numbers() -> None:
    said = "This model's maximum context length is 1024 tokens. However, your prompt contains 1100 input tokens"
    error = mapped(f"{said} (parameter=input_tokens, value=1100)", param="input_tokens")
    assert isinstance(error, ContextLengthExceeded)
    assert (error.message, error.param) == (f"{said}.", "messages")


@pytest.mark.parametrize(
    ("message", "named", "param"),
    [
        ("temperature must be non-negative, got -1.", "temperature", "temperature"),
        ("min_p must be in [0, 1], got 4.", None, "min_p"),
        ("stop cannot contain an empty string.", None, "stop"),
        ("your prompt is empty", "input_text", "messages"),
        ('tool_choice="required" requires --tool-call-parser to be set', None, "tool_choice"),
        ('"auto" tool choice requires --enable-auto-tool-choice', None, "tool_choice"),
        ("Model does not support this; dimensions must be unset.", None, "dimensions"),
        ("Something else.", None, None),
    ],
)
def test_the_field_is_named(message: str, named: str | None, param: str | None) -> None:
    error = mapped(message, param=named)
    assert isinstance(error, InvalidRequest)
    assert error.param == param


def test_the_clients_own_value_is_not_repeated() -> None:
    assert "secret" not in mapped("top_p is wrong. (parameter=top_p, value=secret)").message


def test_what_failed_inside_vllm_is_not_told_to_clients() -> None:
    assert "assert" not in mapped("assert hidden_states.shape == (4, 8)", 500).message


def test_a_message_has_one_line_and_a_bound() -> None:
    message = mapped("line\n" * 1000).message
    assert "\n" not in message
    assert len(message) <= MAX_MESSAGE + 1


@pytest.mark.parametrize(
    ("loc", "param"),
    [
        (("n",), "n"),
        (("messages", 0, "role"), "messages[0].role"),
        (("stop", "list[str]", 0), "stop"),
        (("tools", 2, "function", "name"), "tools[2].function.name"),
        (("response_format", "JsonSchemaResponseFormat", "schema"), "response_format"),
        ((), None),
    ],
)
def test_a_broken_rule_is_named_as_openai_names_it(loc: tuple[object, ...], param: str | None) -> None:
    error = error_from_validation([{"loc": loc, "msg": "Input should be a valid integer"}])
    assert error.param == param
    assert "valid integer" in error.message


def test_a_rule_over_several_fields_names_the_one_it_speaks_of() -> None:
    error = error_from_validation([{"loc": (), "msg": "Value error, `prompt_logprobs` must be a positive value"}])
    assert error.param == "prompt_logprobs"
