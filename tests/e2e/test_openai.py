"""The official OpenAI client against the three real processes, llama.cpp and the demo model behind them."""

from __future__ import annotations

import asyncio
import io
from math import hypot

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from tests.e2e.conftest import System
from worker.demo import load_faq

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAQ = load_faq()
SHORT = [entry for entry in FAQ if len(entry.answer) < 400]


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


async def chat(client: AsyncOpenAI, question: str, **fields: object) -> str:
    answer = await client.chat.completions.create(model="demo", messages=ask(question), temperature=0, **fields)
    return answer.choices[0].message.content


async def stream_chat(client: AsyncOpenAI, question: str, **fields: object) -> str:
    stream = await client.chat.completions.create(
        model="demo", messages=ask(question), temperature=0, stream=True, **fields
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_models_are_listed_and_retrieved(demo_system: System) -> None:
    async with demo_system.openai() as client:
        assert [model.id async for model in client.models.list()] == ["demo", "sim"]
        assert (await client.models.retrieve("demo")).object == "model"


async def test_every_question_of_the_faq_is_answered_word_for_word_streamed_and_plain(demo_system: System) -> None:
    async with demo_system.openai() as client:
        plain = await asyncio.gather(*(chat(client, entry.question) for entry in SHORT))
        streamed = await asyncio.gather(*(stream_chat(client, entry.question) for entry in SHORT))
    assert plain == [entry.answer for entry in SHORT]
    assert streamed == plain


async def test_completions_answer_too_and_their_usage_is_the_same_streamed_and_plain(demo_system: System) -> None:
    entry = SHORT[0]
    prompt = f"Q: {entry.question}\nA:"
    async with demo_system.openai() as client:
        plain = await client.completions.create(model="demo", prompt=prompt, max_tokens=200, temperature=0)
        stream = await client.completions.create(
            model="demo",
            prompt=prompt,
            max_tokens=200,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert plain.choices[0].text.strip() == entry.answer
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        plain.usage.prompt_tokens,
        plain.usage.completion_tokens,
    )


async def test_each_request_goes_to_a_worker_that_serves_its_model(demo_system: System) -> None:
    async with demo_system.openai() as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=model, messages=ask(SHORT[0].question), temperature=0)
                for model in ["demo", "sim"] * 8
            )
        )
    texts = {model: {a.choices[0].message.content for a in answers if a.model == model} for model in ("demo", "sim")}
    assert texts["demo"] == {SHORT[0].answer}
    assert texts["sim"].isdisjoint(texts["demo"])
    assert len(texts["sim"]) == 1


async def test_embeddings_are_the_same_in_both_forms_and_whatever_comes_with_them(demo_system: System) -> None:
    texts = ["one text", "another text, which is longer", "one text"]
    async with demo_system.openai() as client:
        packed = await client.embeddings.create(model="sim", input=texts)
        plain = await client.embeddings.create(model="sim", input=texts, encoding_format="float")
        alone = await client.embeddings.create(model="sim", input=texts[1])
        tokens = await client.embeddings.create(model="sim", input=[[1, 2, 3], [4]])
    vectors = [one.embedding for one in packed.data]
    assert [one.index for one in packed.data] == [0, 1, 2]
    assert [one.embedding for one in plain.data] == vectors
    assert (vectors[0], vectors[1]) == (vectors[2], alone.data[0].embedding)
    assert vectors[0] != vectors[1]
    assert {len(vector) for vector in vectors} == {64}
    assert packed.usage == plain.usage
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > alone.usage.prompt_tokens > 0
    assert (tokens.usage.prompt_tokens, tokens.model, tokens.object) == (4, "sim", "list")


async def test_a_shorter_embedding_is_the_beginning_of_the_longer_one(demo_system: System) -> None:
    async with demo_system.openai() as client:
        whole = await client.embeddings.create(model="sim", input="text")
        cut = await client.embeddings.create(model="sim", input="text", dimensions=8)
    start = whole.data[0].embedding[:8]
    assert cut.data[0].embedding == pytest.approx([one / hypot(*start) for one in start], abs=1e-6)


async def test_as_many_inputs_as_openai_takes_are_one_request(demo_system: System) -> None:
    async with demo_system.openai() as client:
        answer = await client.embeddings.create(model="sim", input=[f"text {number}" for number in range(2048)])
        alone = await client.embeddings.create(model="sim", input="text 2047")
    assert len(answer.data) == 2048
    assert answer.data[2047].embedding == alone.data[0].embedding


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("demo", {"input": "text"}, "model"),
        ("sim", {"input": ""}, "input"),
        ("sim", {"input": ["text"] * 2049}, "input"),
        ("sim", {"input": "text", "dimensions": 65}, "dimensions"),
    ],
)
async def test_what_cannot_be_embedded_is_named(
    demo_system: System, model: str, fields: dict[str, object], param: str
) -> None:
    async with demo_system.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=model, **fields)
    assert caught.value.param == param


async def test_max_tokens_and_stop_are_exact(demo_system: System) -> None:
    entry = max(SHORT, key=lambda entry: len(entry.answer))
    stop = entry.answer.split()[5]
    async with demo_system.openai() as client:
        limited = await client.chat.completions.create(
            model="demo", messages=ask(entry.question), temperature=0, max_tokens=7
        )
        stopped = await client.chat.completions.create(
            model="demo", messages=ask(entry.question), temperature=0, stop=stop
        )
    assert limited.usage.completion_tokens == 7
    assert limited.choices[0].finish_reason == "length"
    assert entry.answer.startswith(limited.choices[0].message.content)
    assert stopped.choices[0].message.content == entry.answer.split(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"


async def test_an_unknown_model_is_a_404_in_openai_s_shape(demo_system: System) -> None:
    async with demo_system.openai() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nobody", messages=ask("?"))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
        ({"messages": ask("x"), "max_tokens": -1}, "max_tokens"),
        ({"messages": ask("x"), "temperature": "hot"}, "temperature"),
        ({"messages": ask("x"), "n": 0}, "n"),
        ({}, "messages"),
    ],
)
async def test_bad_fields_are_named(demo_system: System, fields: dict[str, object], param: str) -> None:
    async with (
        aiohttp.ClientSession(demo_system.gateway_url) as http,
        http.post("/v1/chat/completions", json={"model": "demo", **fields}) as response,
    ):
        error = (await response.json())["error"]
    assert response.status == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_malformed_json_is_a_400_and_an_oversized_body_a_413(demo_system: System) -> None:
    async with aiohttp.ClientSession(demo_system.gateway_url) as http:
        async with http.post("/v1/chat/completions", data=b'{"model": "demo", ') as malformed:
            assert malformed.status == 400
            assert "JSON" in (await malformed.json())["error"]["message"]
        async with http.post("/v1/chat/completions", data=io.BytesIO(b" " * 1_048_577)) as oversized:
            assert oversized.status == 413
            assert (await oversized.json())["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(demo_system: System, stream: bool) -> None:
    async with demo_system.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="demo", messages=ask("worker " * 4000), stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in caught.value.message


async def test_unknown_routes_and_methods_answer_in_openai_s_shape(demo_system: System) -> None:
    async with aiohttp.ClientSession(demo_system.gateway_url) as http:
        async with http.get("/v1/nothing") as missing:
            assert (missing.status, (await missing.json())["error"]["type"]) == (404, "invalid_request_error")
        async with http.get("/v1/chat/completions") as wrong_method:
            assert (wrong_method.status, wrong_method.headers["Allow"]) == (405, "POST")


async def test_the_request_id_comes_back(demo_system: System) -> None:
    headers = {"X-Request-ID": "tests-own-id-1"}
    body = {"model": "demo", "messages": ask(SHORT[0].question), "temperature": 0}
    async with (
        aiohttp.ClientSession(demo_system.gateway_url) as http,
        http.post("/v1/chat/completions", json=body, headers=headers) as response,
    ):
        assert response.headers["X-Request-ID"] == "tests-own-id-1"


async def test_metrics_show_workers_and_their_load(demo_system: System) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"http://{demo_system.scheduler_metrics}/metrics") as response:
            scheduler = await response.text()
        async with http.get(f"{demo_system.gateway_url}/metrics") as response:
            gateway = await response.text()
    assert 'lb_scheduler_workers{model="demo",state="ready"} 2.0' in scheduler
    assert "lb_scheduler_worker_tokens_in_flight{" in scheduler
    assert 'lb_gateway_requests_total{code="200",model="demo",route="chat"}' in gateway
