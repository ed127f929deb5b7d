"""Events to OpenAI's bytes, exactly. `REWRITE_GOLDEN=1` keeps what comes out now: read the difference first."""

from __future__ import annotations

import json
import os
import struct
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from gateway.render import answer_for, chunks_for
from gateway.schema import OpenAIRequest, parse
from lbcore import errors
from lbcore.generation import (
    Delta,
    Dialect,
    Embedding,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)

CASES = sorted((Path(__file__).parent / "answers").glob("*.json"))
STREAMED = [path for path in CASES if not path.stem.startswith("embedding")]
WHOLE = [path for path in CASES if "failed" not in path.stem]
REQUEST_ID, CREATED = "0123456789abcdef", 1_700_000_000
OUR_OWN = {"reasoning_content"}
"""Fields that engines and clients agree upon, but OpenAI's reference does not know."""


def request_in(case: dict[str, Any], stream: bool) -> OpenAIRequest:
    fields = {**case["request"], "stream": stream}
    if stream and case["include_usage"]:
        fields["stream_options"] = {"include_usage": True}
    return parse(Dialect(case["dialect"]), json.dumps(fields).encode())


def event_in(said: dict[str, Any]) -> Event:
    [(kind, fields)] = said.items()
    match kind:
        case "started":
            return Started(**fields)
        case "finished":
            return Finished(**fields)
        case "embedding":
            return Embedding(fields["index"], struct.pack(f"<{len(fields['vector'])}f", *fields["vector"]))
        case "failed":
            return Failed(getattr(errors, fields["error"])(fields["message"]))
    return Delta(
        choice=fields.get("choice", 0),
        text=fields.get("text", ""),
        token_ids=tuple(fields.get("token_ids", ())),
        reasoning=fields.get("reasoning", ""),
        tool_calls=tuple(ToolCallDelta(**part) for part in fields.get("tool_calls", ())),
        logprobs=tuple(logprob_in(token) for token in fields.get("logprobs", ())),
        finish_reason=FinishReason(fields["finish_reason"]) if "finish_reason" in fields else None,
    )


def logprob_in(said: dict[str, Any]) -> TokenLogprob:
    top = tuple(TopLogprob(one["token"], float(one["logprob"]), bytes(one["token_bytes"])) for one in said["top"])
    return TokenLogprob(said["token"], float(said["logprob"]), bytes(said["token_bytes"]), top)


def batches_in(case: dict[str, Any]) -> list[list[Event]]:
    return [[event_in(said) for said in batch] for batch in case["batches"]]


def streamed(case: dict[str, Any]) -> bytes:
    chunks = chunks_for(request_in(case, stream=True), REQUEST_ID, CREATED)
    return b"".join(chunks.render(batch) for batch in batches_in(case))


def whole(case: dict[str, Any]) -> bytes:
    answer = answer_for(request_in(case, stream=False), REQUEST_ID, CREATED)
    bodies = [answer.add(batch) for batch in batches_in(case)]
    assert all(body is None for body in bodies[:-1])
    body = bodies[-1]
    assert body is not None
    return body if isinstance(body, bytes) else b"".join(body)


def compare(path: Path, actual: bytes) -> None:
    if os.environ.get("REWRITE_GOLDEN") == "1":
        path.write_bytes(actual)
    assert actual == path.read_bytes()


def load(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.read_text())
    return case


def chunks_in(stream: bytes) -> list[dict[str, Any]]:
    frames = stream.decode().removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") and len(frame.splitlines()) == 1 for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames if frame != "data: [DONE]"]


def assert_known(model: type[BaseModel], said: dict[str, Any]) -> None:
    """The official model takes it without a conversion, knows every field, and says the same again."""
    read = model.model_validate_json(json.dumps(said), strict=True)
    assert read.model_dump(mode="json", exclude_unset=True) == said
    assert unknown_fields(read) <= OUR_OWN


def decoded(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with vectors as numbers: the package knows base64 only before it has turned it into these."""
    for one in answer.get("data", ()):
        if isinstance(one["embedding"], str):
            values = b64decode(one["embedding"])
            one["embedding"] = list(struct.unpack(f"<{len(values) // 4}f", values))
    return answer


def unknown_fields(read: object) -> set[str]:
    if isinstance(read, list):
        return set().union(*map(unknown_fields, read)) if read else set()
    if not isinstance(read, BaseModel):
        return set()
    below = [unknown_fields(getattr(read, name)) for name in type(read).model_fields]
    return set(read.model_extra or {}).union(*below)


@pytest.mark.parametrize("path", STREAMED, ids=lambda path: path.stem)
def test_a_streamed_answer_is_what_it_was(path: Path) -> None:
    compare(path.with_suffix(".sse"), streamed(load(path)))


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_a_whole_answer_is_what_it_was(path: Path) -> None:
    compare(path.with_suffix(".body"), whole(load(path)))


@pytest.mark.parametrize("path", STREAMED, ids=lambda path: path.stem)
def test_the_openai_package_knows_every_chunk(path: Path) -> None:
    case = load(path)
    for chunk in chunks_in(streamed(case)):
        if "error" in chunk:
            continue
        if case["dialect"] == "chat":
            assert_known(ChatCompletionChunk, chunk)
        else:
            # The package has one model for chunks and whole completions, and it knows only finished choices.
            for choice in chunk["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
            assert_known(Completion, chunk)


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_the_openai_package_knows_every_whole_answer(path: Path) -> None:
    case = load(path)
    model = {"chat": ChatCompletion, "completion": Completion, "embedding": CreateEmbeddingResponse}[case["dialect"]]
    assert_known(model, decoded(json.loads(whole(case))))


@pytest.mark.parametrize("path", sorted({*STREAMED} & {*WHOLE}), ids=lambda path: path.stem)
def test_the_chunks_joined_are_the_whole_answer(path: Path) -> None:
    case = load(path)
    texts: dict[int, str] = {}
    for chunk in chunks_in(streamed(case)):
        for choice in chunk["choices"]:
            gained = choice["text"] if "text" in choice else choice["delta"].get("content")
            texts[choice["index"]] = texts.get(choice["index"], "") + (gained or "")
    answer = json.loads(whole(case))
    for choice in answer["choices"]:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert texts[choice["index"]] == (text or "")
