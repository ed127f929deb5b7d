"""What servers say when something is wrong, and what that means here."""

from __future__ import annotations

import orjson
import pytest

from lbcore.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    Saturated,
)
from worker.engines.openai.errors import MAX_MESSAGE_CHARACTERS, BadEnd, from_json, from_status


def error(status: int, answer: object, retry_after: str | None = None) -> LoadBalancerError:
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    return from_status(status, retry_after, body, "messages").error


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 5000. The model's context length is 4096",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested 5000",
        "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
    ],
)
def test_too_much_for_the_context_in_each_server_s_words(message: str) -> None:
    for answer in ({"error": {"message": message}}, {"object": "error", "message": message}, {"error": message}):
        found = error(400, answer)
        assert isinstance(found, ContextLengthExceeded)
        assert (found.param, found.code) == ("messages", "context_length_exceeded")
        assert "4096" in found.message
        assert "5000" in found.message


def test_the_field_is_named_where_the_server_names_it() -> None:
    detail = [{"loc": ["body", "messages", 0, "role"], "msg": "field required", "input": "secret"}]
    for answer, param in (
        ({"error": {"message": "x", "param": "top_p"}}, "top_p"),
        ({"error": {"message": "x", "param": "body.top_p"}}, "top_p"),
        ({"detail": detail}, "messages"),
        ({"detail": "x"}, None),
        ({"message": "x"}, None),
        ({"detail": [{"loc": "odd", "msg": "x"}]}, None),
    ):
        found = error(422, answer)
        assert isinstance(found, InvalidRequest)
        assert found.param == param
        assert "secret" not in found.message


def test_vllm_s_lists_of_what_is_wrong_are_read_without_what_they_quote() -> None:
    listed = "1 validation error:\n  {'type': 'int', 'loc': 'body.n', 'msg': 'Must be a number', 'input': 'secret'}"
    assert error(400, {"error": {"message": listed}}).message == "Must be a number"


def test_codes_are_passed_on_when_they_are_words() -> None:
    for code, passed in (("invalid_value", "invalid_value"), ("400", None), (400, None), (None, None)):
        found = error(400, {"error": {"message": "x", "code": code}})
        assert isinstance(found, InvalidRequest)
        assert found.code == passed


def test_messages_are_one_short_line() -> None:
    found = error(400, {"error": {"message": "a\n b\t" + "x" * 9999}})
    assert found.message.startswith("a b xxx")
    assert len(found.message) == MAX_MESSAGE_CHARACTERS
    assert found.message.endswith("…")


@pytest.mark.parametrize("body", [b"", b"<html>secret</html>", b"[1]", b"{}", b'"text"', b'{"error":{"message":5}}'])
@pytest.mark.parametrize(
    ("status", "cls", "how"),
    [
        (400, InvalidRequest, BadEnd.REFUSED),
        (413, BodyTooLarge, BadEnd.REFUSED),
        (401, EngineFailed, BadEnd.KEY_REFUSED),
        (403, EngineFailed, BadEnd.KEY_REFUSED),
        (404, EngineFailed, BadEnd.MISSING),
        (429, Saturated, BadEnd.SATURATED),
        (503, Saturated, BadEnd.SATURATED),
        (500, EngineFailed, BadEnd.FAILED),
        (302, EngineFailed, BadEnd.FAILED),
        (418, EngineFailed, BadEnd.FAILED),
    ],
)
def test_a_status_means_the_same_whatever_the_body(
    body: bytes, status: int, cls: type[LoadBalancerError], how: BadEnd
) -> None:
    bad = from_status(status, None, body, "messages")
    assert type(bad.error) is cls
    assert bad.how is how
    assert bad.error.message
    assert "secret" not in bad.error.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 1), ("7", 7), ("0.5", 0.5), ("-3", 0), ("1e9", 3600), ("Wed, 21 Oct 2026", 1), ("", 1)],
)
def test_when_to_come_again(header: str | None, seconds: float) -> None:
    found = error(429, {}, header)
    assert isinstance(found, Saturated)
    assert found.retry_after_s == seconds


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        ({"choices": []}, None),
        ({"choices": [], "error": None}, None),
        ({"object": "ping"}, None),
        (None, None),
        ({"error": {"message": "x", "code": 400}}, BadEnd.REFUSED),
        ({"error": {"message": "x", "code": "400"}}, BadEnd.REFUSED),
        ({"error": {"message": "x", "code": "worse"}}, BadEnd.FAILED),
        ({"error": "x"}, BadEnd.FAILED),
        ({"object": "error", "message": "x", "code": 400}, BadEnd.REFUSED),
        ({"message": "x"}, BadEnd.FAILED),
        ({"choices": [], "error": {"message": "x"}}, BadEnd.FAILED),
    ],
)
def test_errors_inside_an_answer(answer: object, how: BadEnd | None) -> None:
    bad = from_json(answer, "prompt")
    assert (bad.how if bad else None) is how


def test_who_else_is_asked() -> None:
    helped = {status: from_status(status, None, b"", "x").another_may_help for status in (400, 401, 404, 429, 500, 503)}
    assert helped == {400: False, 401: False, 404: False, 429: True, 500: False, 503: True}


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (
            501,
            {
                "error": {
                    "code": 501,
                    "message": "This server does not support embeddings. Start it with `--embeddings`",
                }
            },
        ),
        (400, {"error": {"code": 400, "message": "Pooling type 'none' is not OAI compatible"}}),
        (400, {"object": "error", "message": "The model does not support Embeddings API", "code": 400}),
        (400, {"object": "error", "message": "This model does not appear to be an embedding model by default."}),
        (400, {"object": "error", "message": "Unsupported by turbomind."}),
        (403, {"error": {"message": "You are not allowed to generate embeddings from this model"}}),
        (404, {"detail": "Not Found"}),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}),
        (404, b""),
        (405, {"detail": "Method Not Allowed"}),
    ],
)
def test_a_server_without_embeddings_in_each_server_s_words(status: int, answer: object) -> None:
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    bad = from_status(status, None, body, "input")
    assert bad.how is BadEnd.REFUSED
    assert isinstance(bad.error, InvalidRequest)
    assert (bad.error.message, bad.error.param) == ("This model makes no embeddings.", "model")
    other = from_status(status, None, body, "messages").error
    assert other.message != bad.error.message


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": "The model `x` does not exist.", "code": 404}},
        {"error": {"message": "not here", "param": "model"}},
        {"error": {"message": "not here", "code": "model_not_found"}},
    ],
)
def test_a_model_that_is_missing_is_not_one_without_embeddings(answer: object) -> None:
    assert from_status(404, None, orjson.dumps(answer), "input").how is BadEnd.MISSING


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "input (900 tokens) is too large to process. increase the physical batch size (current batch size: 512)"),
        (413, "Input validation error: `inputs` must have less than 512 tokens. Given: 900"),
        (400, "Invalid 'input': maximum context length is 512 tokens, you sent 900"),
    ],
)
def test_too_long_an_input_in_each_server_s_words(status: int, message: str) -> None:
    bad = from_status(status, None, orjson.dumps({"error": {"message": message}}), "input")
    assert bad.how is BadEnd.REFUSED
    assert isinstance(bad.error, ContextLengthExceeded)
    assert (bad.error.message, bad.error.param) == (message, "input")


def test_dimensions_are_named_where_the_server_does_not() -> None:
    message = (
        "Model m does not support matryoshka representation, changing output dimensions will lead to poor results."
    )
    found = from_status(400, None, orjson.dumps({"error": {"message": message}}), "input").error
    assert isinstance(found, InvalidRequest)
    assert found.param == "dimensions"
