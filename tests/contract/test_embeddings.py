"""The laws of embeddings, for every engine that offers them."""

from __future__ import annotations

import pytest

from lbcore.errors import Cancelled, ContextLengthExceeded, InvalidRequest
from lbcore.generation import Started
from tests.contract.engines import Answer, Feature, Watch

FEATURE = Feature.EMBEDDINGS

TEXTS = ["A load balancer", "keeps a table of its workers", "and asks each of them how it is.", "A load balancer"]


def alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Equal but for the rounding of sums that were added up in another order."""
    return one == pytest.approx(other, rel=1e-3, abs=1e-4)


def assert_refused(answer: Answer, param: str) -> None:
    assert isinstance(answer.error, InvalidRequest)
    assert answer.error.param == param
    assert len(answer.events) == 1, "a refused request must not start"


async def test_one_input_has_one_vector_and_its_usage(watch: Watch) -> None:
    answer = await watch.embed("A load balancer").end()
    [embedding] = answer.embeddings
    assert any(embedding.vector)
    assert answer.finished.prompt_tokens > 0
    assert answer.finished.output_tokens == 0


async def test_several_inputs_have_the_vectors_that_they_have_alone(watch: Watch) -> None:
    alone = [await watch.embed(text).end() for text in TEXTS]
    together = await watch.embed(TEXTS).end()
    assert len(together.embeddings) == len(TEXTS)
    for one, answer in zip(together.embeddings, alone, strict=True):
        assert alike(one.vector, answer.embeddings[0].vector)
    assert together.finished.prompt_tokens == sum(answer.finished.prompt_tokens for answer in alone)


async def test_equal_inputs_have_equal_vectors_and_others_have_others(watch: Watch) -> None:
    one, two, three, again = (embedding.vector for embedding in (await watch.embed(TEXTS).end()).embeddings)
    assert alike(one, again)
    assert not alike(one, two)
    assert not alike(two, three)


async def test_token_ids_are_an_input_too(watch: Watch) -> None:
    flat = await watch.embed([5, 6, 7, 8, 9]).end()
    several = await watch.embed([[5, 6, 7, 8, 9], [5, 6]]).end()
    assert len(flat.embeddings) == 1
    assert len(several.embeddings) == 2
    assert alike(flat.embeddings[0].vector, several.embeddings[0].vector)
    assert several.finished.prompt_tokens >= flat.finished.prompt_tokens + 2


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
async def test_the_form_that_the_client_wants_makes_no_difference_here(watch: Watch, encoding_format: str) -> None:
    plain = await watch.embed("A load balancer").end()
    told = await watch.embed("A load balancer", encoding_format=encoding_format).end()
    assert alike(told.embeddings[0].vector, plain.embeddings[0].vector)


async def test_many_inputs_come_in_order(watch: Watch) -> None:
    texts = [f"Text {number}, which is {'very ' * (number % 7)}long" for number in range(150)]
    answer = await watch.embed(texts).end()
    assert len(answer.embeddings) == 150
    for place in (0, 77, 149):
        alone = await watch.embed(texts[place]).end()
        assert alike(answer.embeddings[place].vector, alone.embeddings[0].vector)


async def test_embeddings_and_answers_are_not_mixed_up(watch: Watch) -> None:
    alone = [(await watch.embed(text).end()).embeddings[0].vector for text in TEXTS]
    crowd = [watch.embed(text) for text in TEXTS * 8]
    for number, answer in enumerate(crowd):
        await answer.end()
        assert alike(answer.embeddings[0].vector, alone[number % len(TEXTS)])


@pytest.mark.parametrize("given", [None, "", 5, {"text": "x"}, [], ["a", 1], ["a", ""], [-1], [[]]])
async def test_an_input_that_is_none_is_refused(watch: Watch, given: object) -> None:
    assert_refused(await watch.embed(given).end(), "input")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dimensions", 0), ("dimensions", "many"), ("dimensions", 2**31 - 1), ("encoding_format", "int4")],
)
async def test_a_wrong_value_is_refused_by_the_name_of_its_field(watch: Watch, field: str, value: object) -> None:
    assert_refused(await watch.embed("A load balancer", **{field: value}).end(), field)


async def test_too_long_an_input_is_refused_with_the_numbers(watch: Watch) -> None:
    limit = watch.info.context_length
    answer = await watch.embed(["short", "word " * limit]).end()
    assert isinstance(answer.error, ContextLengthExceeded)
    assert (answer.error.param or "").startswith("input")
    assert str(limit) in answer.error.message
    assert not answer.embeddings


async def test_a_request_aborted_before_it_starts_is_cancelled(watch: Watch) -> None:
    answer = watch.embed(TEXTS * 20, "r")
    watch.abort("r")
    await answer.end()
    assert isinstance(answer.error, Cancelled)
    assert not answer.embeddings


async def test_whoever_is_told_of_the_start_may_abort_at_once(watch: Watch) -> None:
    answer, other = watch.embed(TEXTS * 20, "r"), watch.embed(TEXTS)

    def abort() -> None:
        if len(answer.events) == 1:
            watch.abort("r")

    answer.on_event = abort
    await answer.end()
    assert isinstance(answer.events[0], Started)
    assert isinstance(answer.error, Cancelled)
    assert not answer.embeddings
    assert len((await other.end()).embeddings) == len(TEXTS)


async def test_the_load_returns_to_nothing(watch: Watch) -> None:
    answers = [watch.embed(TEXTS * 5, f"r{number}") for number in range(6)]
    for number in range(0, 6, 2):
        watch.abort(f"r{number}")
    for answer in answers:
        await answer.end()
    assert [bool(answer.embeddings) for answer in answers] == [False, True] * 3
    assert watch.engine.load().kv_used_blocks == 0
