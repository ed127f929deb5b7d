"""A server's vectors become embeddings in the order of the inputs, however the server writes them."""

from __future__ import annotations

import struct
from base64 import b64encode

import orjson
import pytest

from lbcore.errors import EngineFailed, InvalidRequest
from lbcore.generation import Dialect, Embedding, Finished, GenerationRequest, Started
from worker.engines.openai.body import Ask, read_body
from worker.engines.openai.errors import BadAnswer, BadEnd
from worker.engines.openai.vectors import Vectors, read_vectors


def ask(inputs: object = "x", **fields: object) -> Ask:
    return read_body(GenerationRequest("r", Dialect.EMBEDDING, orjson.dumps({"input": inputs, **fields})))


def packed(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def item(embedding: object, index: object = 0) -> dict[str, object]:
    return {"object": "embedding", "index": index, "embedding": embedding}


def answer(*data: object, **more: object) -> bytes:
    return orjson.dumps({"object": "list", "data": data, **more})


def test_numbers_and_base64_are_the_same_vector() -> None:
    for said in ([0.5, -2], b64encode(packed(0.5, -2)).decode()):
        assert read_vectors(answer(item(said)), ask()).vectors == [packed(0.5, -2)]


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    found = read_vectors(answer(item([2], 2), item([0], 0), item([1], 1)), ask(["a", "b", "c"]))
    assert found.vectors == [packed(0), packed(1), packed(2)]


def test_without_an_index_they_are_taken_as_they_come() -> None:
    found = read_vectors(answer({"embedding": [0]}, {"embedding": [1]}), ask([[1], [2]]))
    assert found.vectors == [packed(0), packed(1)]


@pytest.mark.parametrize(
    ("usage", "prompt_tokens", "cached_tokens"),
    [
        ({"prompt_tokens": 7, "total_tokens": 7}, 7, 0),
        ({"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}, 7, 3),
        ({"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 9}}, 7, 6),
        ({"prompt_tokens": 7, "prompt_tokens_details": None}, 7, 0),
        ({"total_tokens": 7}, 7, 0),
        ({"prompt_tokens": None}, 0, 0),
        ({"prompt_tokens": "many"}, 0, 0),
        ("many", 0, 0),
        (None, 0, 0),
    ],
)
def test_usage_is_what_the_server_says(usage: object, prompt_tokens: int, cached_tokens: int) -> None:
    found = read_vectors(answer(item([1]), usage=usage), ask())
    assert (found.prompt_tokens, found.cached_tokens) == (prompt_tokens, cached_tokens)


def test_the_events_of_a_request() -> None:
    asked = ask(["a", "b"])
    vectors = Vectors(asked)
    assert not vectors.started
    data = answer(item([1], 1), item([0], 0), usage={"prompt_tokens": 5})
    assert [*vectors.take(read_vectors(data, asked))] == [
        Started(5),
        Embedding(0, packed(0)),
        Embedding(1, packed(1)),
        Finished(5, 0, 0),
    ]
    assert vectors.started
    assert vectors.finished
    assert (vectors.choices, vectors.tokens, vectors.prompt_tokens) == (2, 2, 5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b'{"data":[{"embedding":[0.5, 1', "no JSON"),
        (b'{"data":[{"embedding":[NaN]}]}', "no JSON"),
        (b"[]", "no answer"),
        (b"null", "no answer"),
        (b"{}", "no answer"),
        (orjson.dumps({"data": {"embedding": [1]}}), "no answer"),
        (answer(), "0 vectors for 2 inputs"),
        (answer(item([1])), "1 vectors for 2 inputs"),
        (answer(item([1], 0), item([1], 1), item([1], 2)), "3 vectors for 2 inputs"),
        (answer(item([1], 1), item([1], 1)), "two vectors for one input"),
        (answer(item([1], 0), item([1, 2], 1)), "several sizes"),
        *(
            (answer(item([1], 0), item(bad, 1)), "cannot be read")
            for bad in (None, 5, {}, [], "", [None], ["1"], [[1]], [1e300], "AAA=", "no base64", "AAAA\n", "\u00e9")
        ),
        *((answer(item([1], 0), item([1], bad)), "cannot be read") for bad in (-1, 2, "1", None, True, 0.5)),
        (answer(item([1], 0), {"index": 1}), "cannot be read"),
        (answer(item([1], 0), "secret"), "cannot be read"),
    ],
)
def test_what_is_no_answer(body: bytes, words: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        read_vectors(body, ask(["a", "b"]))
    assert caught.value.how is BadEnd.UNREADABLE
    assert type(caught.value.error) is EngineFailed
    assert words in caught.value.error.message
    assert "secret" not in caught.value.error.message


def test_an_error_in_place_of_vectors() -> None:
    with pytest.raises(BadAnswer) as caught:
        read_vectors(orjson.dumps({"error": {"message": "CUDA error", "code": 500}}), ask())
    assert caught.value.how is BadEnd.FAILED


def test_vectors_of_another_size_than_asked_for_are_a_refusal() -> None:
    assert read_vectors(answer(item([1, 2])), ask(dimensions=2)).vectors == [packed(1, 2)]
    with pytest.raises(BadAnswer) as caught:
        read_vectors(answer(item([1, 2, 3])), ask(dimensions=2))
    assert caught.value.how is BadEnd.REFUSED
    assert isinstance(caught.value.error, InvalidRequest)
    assert caught.value.error.param == "dimensions"
    assert "3 numbers" in caught.value.error.message
