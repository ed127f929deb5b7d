"""Embeddings as the simulated engine reads and draws them."""

from __future__ import annotations

from math import hypot

import orjson
import pytest

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.sim.embedding import EmbeddingAsk, draw_embedding, read_embedding_body


def read(given: object = "Hello", **fields: object) -> EmbeddingAsk:
    body = orjson.dumps({"model": "sim", "input": given, **fields})
    return read_embedding_body(GenerationRequest("r", Dialect.EMBEDDING, body), 64)


def draw(key: bytes = b"k", size: int = 64) -> tuple[float, ...]:
    (event,) = draw_embedding(0, key, size)
    return event.vector


def test_inputs_are_prompts() -> None:
    assert [one.tokens for one in read(["12345678", [1, 2, 3], "a"]).inputs] == [2, 3, 1]


@pytest.mark.parametrize(("fields", "size"), [({}, 64), ({"dimensions": 64}, 64), ({"dimensions": 1}, 1)])
def test_the_size_is_the_engine_s_or_less(fields: dict[str, object], size: int) -> None:
    assert read(**fields).size == size


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"dimensions": 65}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**{"given": fields.pop("input", "Hello"), **fields})
    assert caught.value.param == param


@pytest.mark.parametrize("size", [1, 2, 64, 1000])
def test_a_vector_has_its_size_and_length_1(size: int) -> None:
    assert len(draw(size=size)) == size
    assert hypot(*draw(size=size)) == pytest.approx(1, abs=1e-6)


def test_a_vector_depends_on_its_key_alone() -> None:
    assert draw(b"one") == draw(b"one")
    similarity = sum(a * b for a, b in zip(draw(b"one"), draw(b"two"), strict=True))
    assert abs(similarity) < 0.5


def test_a_shorter_vector_is_the_beginning_of_the_longer_one_at_length_1() -> None:
    cut = draw()[:8]
    assert draw(size=8) == pytest.approx([one / hypot(*cut) for one in cut], abs=1e-6)


def test_an_event_tells_its_place() -> None:
    (event,) = draw_embedding(7, b"k", 2)
    assert event.index == 7
