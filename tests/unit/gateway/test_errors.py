from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from gateway.errors import (
    GENERIC_MESSAGE,
    OUTCOMES,
    ErrorAnswer,
    error_body,
    method_not_allowed,
    openai_error,
)
from lbcore.errors import (
    BodyTooLarge,
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LeaseLost,
    LoadBalancerError,
    ModelNotFound,
    NoReadyWorker,
    RetryLater,
    Saturated,
)
from lbcore.wire.status import GRPC_STATUS, tree

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"


def error_object(answer: ErrorAnswer) -> dict[str, object]:
    body = json.loads(answer.body)
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    error: dict[str, object] = body["error"]
    return error


@pytest.mark.parametrize("cls", list(tree()))
def test_every_class_has_a_row_of_its_own_and_a_whole_answer(cls: type[LoadBalancerError]) -> None:
    assert cls in OUTCOMES
    answer = openai_error(cls("Something happened."))
    assert answer.status == OUTCOMES[cls].status
    assert 400 <= answer.status <= 599
    assert answer.headers["Content-Type"] == "application/json"
    assert ("Retry-After" in answer.headers) is issubclass(cls, RetryLater)
    error = error_object(answer)
    assert error["type"] == OUTCOMES[cls].type
    assert error["message"] == ("Something happened." if OUTCOMES[cls].is_message_public else GENERIC_MESSAGE)


def test_no_row_is_left_from_a_class_that_is_gone() -> None:
    assert set(OUTCOMES) == set(tree())


def test_an_invalid_request_brings_its_own_param_and_code() -> None:
    answer = openai_error(InvalidRequest("No.", param="messages[0].role", code="invalid_value"))
    assert answer.status == 400
    assert error_object(answer) == {
        "message": "No.",
        "type": "invalid_request_error",
        "param": "messages[0].role",
        "code": "invalid_value",
    }


def test_an_invalid_request_without_param_and_code_says_null() -> None:
    error = error_object(openai_error(InvalidRequest("No.")))
    assert error["param"] is None
    assert error["code"] is None


def test_special_invalid_requests_have_codes_without_being_told() -> None:
    assert error_object(openai_error(ContextLengthExceeded("Long.")))["code"] == "context_length_exceeded"
    assert error_object(openai_error(BodyTooLarge("Large.")))["code"] == "body_too_large"
    assert openai_error(BodyTooLarge("Large.")).status == 413


def test_an_unknown_model_blames_the_model() -> None:
    answer = openai_error(ModelNotFound("The model `x` does not exist."))
    assert answer.status == 404
    assert error_object(answer) == {
        "message": "The model `x` does not exist.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


@pytest.mark.parametrize(
    ("seconds", "header", "milliseconds"),
    [(0.0, "1", "1"), (0.25, "1", "250"), (1.0, "1", "1000"), (1.001, "2", "1001"), (30.0, "30", "30000")],
)
def test_retry_after_is_rounded_up(seconds: float, header: str, milliseconds: str) -> None:
    headers = openai_error(Saturated("Full.", retry_after_s=seconds)).headers
    assert (headers["Retry-After"], headers["Retry-After-Ms"]) == (header, milliseconds)


@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_no_promise_is_made_of_what_is_no_time(seconds: float) -> None:
    assert "Retry-After" not in openai_error(NoReadyWorker("None.", retry_after_s=seconds)).headers


@pytest.mark.parametrize(
    "error", [LoadBalancerError("db"), LeaseLost("10.0.0.1"), ConfigError("--port"), ValueError("x"), KeyError("y")]
)
def test_what_concerns_operators_is_not_told_to_clients(error: Exception) -> None:
    answer = openai_error(error)
    assert answer.status == 500
    assert error_object(answer)["message"] == GENERIC_MESSAGE


def test_an_engine_message_that_is_no_unicode_is_still_told() -> None:
    assert json.loads(error_body(EngineFailed("bad \ud800 text")))["error"]["message"] == "bad ? text"


def test_method_not_allowed_names_the_methods() -> None:
    answer = method_not_allowed("GET", ("POST", "OPTIONS"))
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST, OPTIONS"
    assert error_object(answer)["code"] == "method_not_allowed"


def test_the_page_of_errors_says_what_the_code_does() -> None:
    rows = [
        tuple(cell.strip().strip("`") for cell in line.strip("|\n").split("|"))
        for line in PAGE.read_text().splitlines()
        if re.match(r"\| `\w+` \|", line)
    ]
    assert rows == [
        (
            cls.__name__,
            GRPC_STATUS[cls].name,
            str(OUTCOMES[cls].status),
            OUTCOMES[cls].type,
            OUTCOMES[cls].code or "its own",
            "yes" if issubclass(cls, RetryLater) else "no",
            "yes" if cls.retry_elsewhere else "no",
        )
        for cls in tree()
    ]
