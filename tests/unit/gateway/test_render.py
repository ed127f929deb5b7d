from __future__ import annotations

import importlib
import json
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Model

from gateway import sse
from gateway.errors import openai_error
from gateway.render import Answer, Chunks, answer_for, chunks_for, model_list, model_object
from gateway.schema import OpenAIRequest, parse
from lbcore.errors import (
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    ModelNotFound,
    NoReadyWorker,
    RateLimited,
    Saturated,
    StreamInterrupted,
)
from lbcore.generation import (
    Delta,
    Dialect,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    ToolCallDelta,
)

GENERATED = (Dialect.CHAT, Dialect.COMPLETION)
STARTED, FINISHED = Started(prompt_tokens=3), Finished(prompt_tokens=3, cached_tokens=0, output_tokens=2)
STOPPED = Delta(finish_reason=FinishReason.STOP)
LOST = Failed(StreamInterrupted("Lost."))

# httpx, or what took its place: whatever the installed client speaks with.
httpx = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__)


def request_for(dialect: Dialect, **fields: object) -> OpenAIRequest:
    good: dict[str, object] = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}
    return parse(dialect, json.dumps({**good, **fields}).encode())


def chunks_of(dialect: Dialect, **fields: object) -> Chunks:
    return chunks_for(request_for(dialect, stream=True, **fields), "r", 5)


def answer_of(dialect: Dialect, **fields: object) -> Answer:
    answer = answer_for(request_for(dialect, **fields), "r", 5)
    assert isinstance(answer, Answer)
    return answer


def objects_in(frames: bytes) -> list[Any]:
    """What the events say, DONE as text; each on one line for whoever cuts lines."""
    lines = frames.decode().split("\n\n")
    assert lines.pop() == ""
    assert all(len(line.splitlines()) == 1 for line in lines)
    said = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in said]


def text_in(chunk: Any) -> str:
    choice = chunk["choices"][0]
    text: str = choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return text


@pytest.mark.parametrize("dialect", GENERATED)
@settings(derandomize=True, deadline=None, max_examples=100)
@given(texts=st.lists(st.text(min_size=1), max_size=5), model=st.text(min_size=1, max_size=20))
def test_any_text_comes_through(dialect: Dialect, texts: list[str], model: str) -> None:
    frames = chunks_of(dialect, model=model).render([Delta(text=text) for text in texts])
    chunks = objects_in(frames)
    assert all(chunk["model"] == model for chunk in chunks)
    opening = 1 if dialect is Dialect.CHAT and texts else 0
    assert [text_in(chunk) for chunk in chunks[opening:]] == texts
    body = answer_of(dialect, model=model).add([*(Delta(text=text) for text in texts), STOPPED, FINISHED])
    assert body is not None
    choice = json.loads(body)["choices"][0]
    assert (choice["text"] if "text" in choice else choice["message"]["content"]) == "".join(texts)


DELTAS = st.builds(
    Delta,
    choice=st.integers(0, 2),
    text=st.text(max_size=5),
    reasoning=st.text(max_size=5),
    tool_calls=st.lists(
        st.builds(ToolCallDelta, st.integers(0, 1), st.just("c"), st.just("f"), st.text()), max_size=1
    ).map(tuple),
    logprobs=st.lists(st.builds(TokenLogprob, st.text(max_size=3), st.floats(), st.binary(max_size=3)), max_size=2).map(
        tuple
    ),
    finish_reason=st.none() | st.sampled_from(FinishReason),
)


@pytest.mark.parametrize("dialect", GENERATED)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(deltas=st.lists(DELTAS, max_size=6))
def test_one_write_for_many_events_says_the_same_as_many_writes(dialect: Dialect, deltas: list[Delta]) -> None:
    events: list[Event] = [STARTED, *deltas, FINISHED]
    options = {"include_usage": True}
    at_once = chunks_of(dialect, n=3, stream_options=options).render(events)
    chunks = chunks_of(dialect, n=3, stream_options=options)
    assert b"".join(chunks.render([event]) for event in events) == at_once
    assert objects_in(at_once)[-1] == "[DONE]"


@pytest.mark.parametrize("dialect", GENERATED)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(deltas=st.lists(DELTAS, max_size=6))
def test_every_chunk_has_one_shape(dialect: Dialect, deltas: list[Delta]) -> None:
    fields = {"text"} if dialect is Dialect.COMPLETION else {"delta"}
    begun = set()
    for chunk in objects_in(chunks_of(dialect, n=3).render(deltas)):
        assert list(chunk) == ["id", "object", "created", "model", "choices"]
        [choice] = chunk["choices"]
        assert set(choice) == {"index", "logprobs", "finish_reason", *fields}
        if dialect is Dialect.CHAT:
            assert ("role" in choice["delta"]) is (choice["index"] not in begun)
            begun.add(choice["index"])


def test_a_token_of_reasoning_is_a_chunk_like_a_token_of_text() -> None:
    chunks = objects_in(chunks_of(Dialect.CHAT).render([Delta(reasoning="hm"), Delta(reasoning="!"), Delta(text="Hi")]))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"reasoning_content": "!"},
        {"content": "Hi"},
    ]


def test_a_completion_shows_no_reasoning() -> None:
    assert chunks_of(Dialect.COMPLETION).render([Delta(reasoning="hm")]) == b""


@pytest.mark.parametrize("dialect", GENERATED)
def test_nothing_to_show_is_nothing_to_write(dialect: Dialect) -> None:
    chunks = chunks_of(dialect)
    assert chunks.render([]) == b""
    assert chunks.render([STARTED, Delta(token_ids=(1,))]) == b""


@pytest.mark.parametrize("dialect", GENERATED)
def test_a_failure_before_the_first_chunk_can_still_be_a_status(dialect: Dialect) -> None:
    chunks = chunks_of(dialect)
    chunks.render([STARTED])
    with pytest.raises(StreamInterrupted):
        chunks.render([LOST])
    assert chunks.is_over


@pytest.mark.parametrize("dialect", GENERATED)
@pytest.mark.parametrize("first", [Delta(text="x"), Delta(text="x", logprobs=(TokenLogprob("x", -1.0, b"x"),))])
def test_a_failure_after_the_first_chunk_is_the_last_event(dialect: Dialect, first: Delta) -> None:
    chunks = chunks_of(dialect)
    frames = chunks.render([first, LOST, Delta(text="y"), FINISHED])
    assert frames.endswith(sse.error(LOST.error))
    assert chunks.is_over
    assert chunks.render([Delta(text="y"), FINISHED]) == b""


def test_nothing_follows_done() -> None:
    chunks = chunks_of(Dialect.CHAT)
    assert chunks.render([Delta(text="x"), STOPPED, FINISHED, Delta(text="y")]).endswith(sse.DONE)
    assert chunks.is_over
    assert chunks.render([FINISHED]) == b""


@pytest.mark.parametrize("dialect", GENERATED)
def test_a_whole_answer_that_fails_raises(dialect: Dialect) -> None:
    answer = answer_of(dialect)
    assert answer.add([STARTED, Delta(text="x")]) is None
    with pytest.raises(StreamInterrupted):
        answer.add([LOST])


def test_every_choice_asked_for_is_in_the_whole_answer() -> None:
    body = answer_of(Dialect.CHAT, n=3).add([Delta(choice=1, text="b"), FINISHED])
    assert body is not None
    choices = json.loads(body)["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(0, ""), (1, "b"), (2, "")]


def test_a_choice_nobody_asked_for_is_shown_all_the_same() -> None:
    body = answer_of(Dialect.COMPLETION).add([Delta(choice=1, text="b"), FINISHED])
    assert body is not None
    assert [choice["text"] for choice in json.loads(body)["choices"]] == ["", "b"]


def test_models_are_as_the_openai_package_knows_them() -> None:
    said = json.loads(model_object("demo", 5))
    assert list(said) == ["id", "object", "created", "owned_by"]
    assert Model.model_validate_json(model_object("demo", 5), strict=True).model_dump(exclude_unset=True) == said
    listed = json.loads(model_list({"b": 6, "demo": 5}))
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["b", "demo"]
    assert listed["data"][1] == said


def client_of(status: int, headers: dict[str, str], content: bytes) -> openai.OpenAI:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, headers=headers, content=content))
    return openai.OpenAI(
        api_key="none", base_url="http://gateway/v1", max_retries=0, http_client=httpx.Client(transport=transport)
    )


EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}
ODD = ['say "no"\\', "\u2028\x85\x00", "Grüße 😀", "\r\n\n"]


def test_the_openai_client_reads_a_stream() -> None:
    deltas = [Delta(text=text) for text in ODD]
    options = {"include_usage": True}
    frames = chunks_of(Dialect.CHAT, stream_options=options).render([STARTED, *deltas, STOPPED, FINISHED])
    with client_of(200, EVENT_STREAM, frames) as client:
        stream = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert texts == ["", *ODD, None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5


def test_the_openai_client_raises_at_an_error_event() -> None:
    frames = chunks_of(Dialect.COMPLETION).render([Delta(text="x"), LOST])
    with client_of(200, EVENT_STREAM, frames) as client:
        stream = client.completions.create(model="demo", prompt="Hi", stream=True)
        assert next(stream).choices[0].text == "x"
        with pytest.raises(openai.APIError, match=r"^Lost\.$") as caught:
            next(stream)
    assert (caught.value.type, caught.value.code) == ("server_error", "stream_interrupted")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequest("No.", param="n"), openai.BadRequestError),
        (ModelNotFound("No."), openai.NotFoundError),
        (RateLimited("No."), openai.RateLimitError),
        (Saturated("No."), openai.InternalServerError),
        (NoReadyWorker("No."), openai.InternalServerError),
        (EngineFailed("No."), openai.InternalServerError),
    ],
)
def test_the_openai_client_raises_by_status(error: LoadBalancerError, expected: type[openai.APIStatusError]) -> None:
    answer = openai_error(error)
    with client_of(*answer) as client, pytest.raises(expected) as caught:
        client.completions.create(model="demo", prompt="Hi")
    assert caught.value.type == json.loads(answer.body)["error"]["type"]
    assert caught.value.body == json.loads(answer.body)["error"]
