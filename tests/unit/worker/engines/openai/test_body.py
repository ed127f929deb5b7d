"""Bodies are checked, and changed only where they must be."""

from __future__ import annotations

import orjson
import pytest

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.openai.body import Ask, read_body, write_body
from worker.engines.openai.kinds import KINDS, UNKNOWN, Facts

LLAMACPP, VLLM = (Facts(next(kind for kind in KINDS if kind.name == name)) for name in ("llamacpp", "vllm"))


def chat(**fields: object) -> Ask:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    return read_body(GenerationRequest("r", Dialect.CHAT, orjson.dumps(body)))


def complete(**fields: object) -> Ask:
    return read_body(GenerationRequest("r", Dialect.COMPLETION, orjson.dumps({"prompt": "x", **fields})))


def sent(ask: Ask, facts: Facts = Facts(UNKNOWN)) -> dict[str, object]:  # noqa: B008
    body = orjson.loads(write_body(ask, "m", facts).body)
    assert isinstance(body, dict)
    return body


def test_what_is_asked_for_is_read_off() -> None:
    ask = complete(prompt=["a", [1, 2]], n=3, max_tokens=7, logprobs=2, stop=["x"])
    assert (ask.prompts, ask.choices_per_prompt, ask.choices, ask.max_tokens) == (2, 3, 6, 7)
    assert (ask.top_logprobs, ask.stop, ask.prompt_field) == (2, ("x",), "prompt")
    ask = chat(max_tokens=7, max_completion_tokens=5, logprobs=True, top_logprobs=4)
    assert (ask.choices, ask.max_tokens, ask.top_logprobs, ask.prompt_field) == (1, 5, 4, "messages")


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "hot"), ("top_p", []), ("presence_penalty", "x"), ("seed", 1.5), ("n", 0), ("stop", 5)],
)
def test_a_field_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**{field: value})
    assert caught.value.param == field


def test_streaming_usage_and_the_name_are_ours() -> None:
    for fields in ({}, {"stream": 1, "stream_options": {"x": 1}, "model": "other"}, {"stream": False, "model": None}):
        body = sent(chat(**fields))
        assert body["stream"] is True
        assert (body["stream_options"], body["model"]) == ({"include_usage": True}, "m")


def test_an_adapter_keeps_its_name() -> None:
    facts = Facts(UNKNOWN, adapters=("lora",))
    assert sent(chat(model="lora"), facts)["model"] == "lora"
    assert sent(chat(model="rola"), facts)["model"] == "m"


def test_only_vllm_is_asked_for_token_ids() -> None:
    assert sent(chat(return_token_ids=False), VLLM)["return_token_ids"] is True
    assert "return_token_ids" not in sent(chat())


def test_vllm_has_several_choices_at_temperature_0_too() -> None:
    body = sent(chat(n=2, temperature=0), VLLM)
    assert (body["temperature"], body["top_k"]) == (1.0, 1)
    for fields in ({"n": 2, "temperature": 0.5}, {"n": 1, "temperature": 0}, {"temperature": 0}):
        body = sent(chat(**fields), VLLM)
        assert body["temperature"] == fields["temperature"]
        assert "top_k" not in body


def test_stop_strings_are_the_server_s_business_unless_it_loses_text() -> None:
    ask = chat(stop=["x"])
    assert sent(ask)["stop"] == ["x"]
    assert write_body(ask, "m", VLLM).stop == ()
    assert write_body(ask, "m", LLAMACPP).stop == ("x",)
    body = sent(ask, LLAMACPP)
    assert "stop" not in body
    assert body["timings_per_token"] is True


def test_what_is_right_already_stays_byte_for_byte() -> None:
    raw = b'{"prompt":"x", "stream":true,"stream_options":{"include_usage":true},"model":"m"}'
    ask = read_body(GenerationRequest("r", Dialect.COMPLETION, raw))
    assert write_body(ask, "m", Facts(UNKNOWN)).body == raw


def test_names_that_are_there_twice_are_replaced_both() -> None:
    raw = b'{"stream":true,"prompt":"x","stream":false,"model":"a","model":"m"}'
    body = write_body(read_body(GenerationRequest("r", Dialect.COMPLETION, raw)), "m", Facts(UNKNOWN)).body
    assert body.count(b'"stream"') == 1
    assert orjson.loads(body)["stream"] is True
