"""Fields that engines read alike: what is taken, and what is refused under which name."""

from __future__ import annotations

import pytest

from lbcore.errors import InvalidRequest
from worker.engines import fields


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("Hi", ("Hi",)),
        (["Hi", "ho"], ("Hi", "ho")),
        ([1, 2], ([1, 2],)),
        ([[1, 2], [3], "a"], ([1, 2], [3], "a")),
        (["a"] * fields.MAX_INPUTS, ("a",) * fields.MAX_INPUTS),
    ],
    ids=["text", "texts", "tokens", "several", "most"],
)
def test_an_input_is_text_or_tokens_or_several(given: object, inputs: tuple[object, ...]) -> None:
    assert fields.inputs({"input": given}) == inputs


@pytest.mark.parametrize(
    "given", [None, "", 5, {}, [], [""], ["a", ""], [[]], [-1], [1.5], [True], ["a"] * (fields.MAX_INPUTS + 1)]
)
def test_an_input_that_is_none_is_refused_by_name(given: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fields.inputs({"input": given})
    assert caught.value.param == "input"


@pytest.mark.parametrize("given", [None, "float", "base64"])
def test_the_forms_of_a_vector_are_known(given: object) -> None:
    fields.encoding_format({"encoding_format": given})


@pytest.mark.parametrize("given", ["", "int8", 5, [], False])
def test_another_form_is_refused_by_name(given: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fields.encoding_format({"encoding_format": given})
    assert caught.value.param == "encoding_format"
