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


def embed(**fields: object) -> Ask:
    return read_body(GenerationRequest("r", Dialect.EMBEDDING, orjson.dumps({"input": "x", **fields})))


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


def test_inputs_of_embeddings_are_counted() -> None:
    ask = embed(input=["a", [1, 2], "c"], dimensions=64)
    assert (ask.prompts, ask.choices, ask.dimensions, ask.prompt_field) == (3, 3, 64, "input")
    assert embed(input=[1, 2, 3]).choices == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("input", []), ("encoding_format", "int8"), ("dimensions", 0), ("messages", [{"role": "user", "content": "x"}])],
)
def test_a_wrong_field_of_embeddings_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        embed(**{field: value})
    assert caught.value.param == field


def test_embeddings_are_asked_for_without_a_stream_and_in_base64_where_that_is_known() -> None:
    for fields in ({}, {"encoding_format": "float"}, {"encoding_format": "base64", "embed_dtype": "float16"}):
        for facts in (VLLM, LLAMACPP):
            assert sent(embed(**fields), facts) == {"input": "x", "model": "m", "encoding_format": "base64"}
        assert sent(embed(**fields)) == {"input": "x", "model": "m"}
    assert write_body(embed(), "m", VLLM).path == "/v1/embeddings"


def test_everything_else_of_embeddings_stays_byte_for_byte() -> None:
    raw = b'{ "input" : ["x"],"stream":0, "odd": 1e-400,\n"model":"m"}'
    ask = read_body(GenerationRequest("r", Dialect.EMBEDDING, raw))
    assert write_body(ask, "m", Facts(UNKNOWN)).body == raw
    raw = raw.replace(b'"m"', b'"m","encoding_format":"base64"')
    ask = read_body(GenerationRequest("r", Dialect.EMBEDDING, raw))
    assert write_body(ask, "m", VLLM).body == raw


def test_llama_cpp_is_not_given_what_it_would_ignore_in_embeddings() -> None:
    with pytest.raises(InvalidRequest) as caught:
        sent(embed(truncate_prompt_tokens=5), LLAMACPP)
    assert caught.value.param == "truncate_prompt_tokens"
    assert sent(embed(truncate_prompt_tokens=5), VLLM)["truncate_prompt_tokens"] == 5
