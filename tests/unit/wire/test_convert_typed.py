"""Typed input becomes the OpenAI body that says the same."""

from __future__ import annotations

import math

import orjson
import pytest

from lbcore.api.v1 import generation_pb2
from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect
from lbcore.wire import convert


def test_a_typed_text_becomes_the_body_that_says_the_same() -> None:
    sampling = generation_pb2.Sampling(
        max_token_count=5, temperature=0.5, top_p=0.25, seed=2**63, stop=["a", "b"], choice_count=2, ignore_eos=True
    )
    dialect, body = _body(generation_pb2.TypedInput(model="m", text="Once", sampling=sampling))
    assert dialect is Dialect.COMPLETION
    assert body == {
        "model": "m",
        "prompt": "Once",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 2**63,
        "stop": ["a", "b"],
        "n": 2,
        "ignore_eos": True,
    }


def test_typed_tokens_become_the_prompt_of_a_completion() -> None:
    typed = generation_pb2.TypedInput(model="m", token_ids=generation_pb2.TokenIds(ids=[1, 2, 2**32 - 1]))
    assert _body(typed) == (Dialect.COMPLETION, {"model": "m", "prompt": [1, 2, 2**32 - 1]})


def test_a_typed_conversation_becomes_a_chat() -> None:
    messages = [generation_pb2.Message(role="user", content="Hi")]
    typed = generation_pb2.TypedInput(model="m", conversation=generation_pb2.Conversation(messages=messages))
    assert _body(typed) == (Dialect.CHAT, {"model": "m", "messages": [{"role": "user", "content": "Hi"}]})


def test_a_sampling_field_that_is_set_to_nothing_is_still_said() -> None:
    sampling = generation_pb2.Sampling(temperature=0, seed=0, ignore_eos=False)
    _, body = _body(generation_pb2.TypedInput(model="m", text="", sampling=sampling))
    assert body == {"model": "m", "prompt": "", "temperature": 0.0, "seed": 0, "ignore_eos": False}


def test_a_temperature_keeps_the_digits_it_was_written_with() -> None:
    # 0.7 travels as a 32-bit float, whose nearest 64-bit one is 0.699999988079071.
    sampling = generation_pb2.Sampling(temperature=0.7, top_p=0.9)
    _, body = _body(generation_pb2.TypedInput(model="m", text="", sampling=sampling))
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sampling_number_that_json_cannot_say_is_refused_by_name(value: float) -> None:
    sampling = generation_pb2.Sampling(temperature=value)
    with pytest.raises(InvalidRequest) as caught:
        _body(generation_pb2.TypedInput(model="m", text="", sampling=sampling))
    assert caught.value.param == "temperature"


def test_a_typed_input_without_a_prompt_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        _body(generation_pb2.TypedInput(model="m"))
    assert caught.value.param == "prompt"


def _body(typed: generation_pb2.TypedInput) -> tuple[Dialect, dict[str, object]]:
    request = convert.generation_from_proto(generation_pb2.GenerateRequest(typed=typed))
    return request.dialect, orjson.loads(request.body)
