"""Embeddings as OpenAI's list of them: every bit of a float arrives, and nothing that is no vector does."""

from __future__ import annotations

import json
import struct
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.render import answer_for
from gateway.schema import parse
from gateway.vectors import Vectors
from lbcore.errors import EngineFailed, StreamInterrupted
from lbcore.generation import Dialect, Embedding, Event, Failed, Finished, Started

FINISHED = Finished(prompt_tokens=3, cached_tokens=0, output_tokens=0)


def embedding(index: int, *numbers: float) -> Embedding:
    return Embedding(index, struct.pack(f"<{len(numbers)}f", *numbers))


def vectors(*, input_count: int = 1, is_base64: bool = False) -> Vectors:
    return Vectors(model="m", input_count=input_count, is_base64=is_base64)


def data_of(answer: Vectors, *events: Event) -> list[dict[str, object]]:
    body = answer.add([*events, FINISHED])
    assert body is not None
    data: list[dict[str, object]] = json.loads(b"".join(body))["data"]
    return data


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_float_comes_through_bit_for_bit(numbers: list[float]) -> None:
    sent = embedding(0, *numbers)
    [plain] = data_of(vectors(), sent)
    [packed] = data_of(vectors(is_base64=True), sent)
    assert isinstance(plain["embedding"], list)
    assert isinstance(packed["embedding"], str)
    assert struct.pack(f"<{len(numbers)}f", *plain["embedding"]) == sent.values
    assert b64decode(packed["embedding"]) == sent.values


def test_what_comes_in_many_batches_says_the_same_as_in_one() -> None:
    events: list[Event] = [Started(3), embedding(0, 1.0), embedding(1, 2.0), FINISHED]
    answer = vectors(input_count=2)
    *unfinished, body = [answer.add([event]) for event in events]
    at_once = vectors(input_count=2).add(events)
    assert unfinished == [None, None, None]
    assert body is not None
    assert at_once is not None
    assert b"".join(body) == b"".join(at_once)


def test_a_large_body_comes_in_the_pieces_it_was_rendered_in() -> None:
    answer = vectors(input_count=8)
    for index in range(8):
        answer.add([embedding(index, *[0.1] * 1000)])
    body = answer.add([FINISHED])
    assert body is not None
    assert max(map(len, body)) < sum(map(len, body)) / 7


@pytest.mark.parametrize("indexes", [(), (0,), (1,), (0, 0), (1, 0), (0, 1, 2)])
def test_an_answer_without_one_vector_for_each_input_in_its_place_is_none(indexes: tuple[int, ...]) -> None:
    with pytest.raises(EngineFailed):
        data_of(vectors(input_count=2), *(embedding(index, 1.0) for index in indexes))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_in_json_is_the_engine_s_failure(number: float) -> None:
    with pytest.raises(EngineFailed):
        data_of(vectors(), embedding(0, 0.5, number))


def test_bytes_that_are_no_floats_are_the_engine_s_failure() -> None:
    with pytest.raises(EngineFailed):
        data_of(vectors(), Embedding(0, b"12345"))


def test_a_failure_raises() -> None:
    with pytest.raises(StreamInterrupted):
        vectors().add([Started(3), embedding(0, 1.0), Failed(StreamInterrupted("Lost."))])


@pytest.mark.parametrize(("said", "kind"), [(None, list), ("float", list), ("base64", str)])
def test_the_request_says_how_vectors_are_written(said: str | None, kind: type) -> None:
    body = json.dumps({"model": "demo", "input": ["a", "b"], "encoding_format": said}).encode()
    answer = answer_for(parse(Dialect.EMBEDDING, body), "r", 5)
    assert isinstance(answer, Vectors)
    data = data_of(answer, embedding(0, 1.0), embedding(1, 2.0))
    assert [type(one["embedding"]) for one in data] == [kind, kind]
