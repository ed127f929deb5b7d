"""Repetitions that llama.cpp would allocate for without end."""

from __future__ import annotations

import pytest

from lbcore.errors import InvalidRequest
from worker.engines.llamacpp.grammar import refuse_reversed_bounds


def formatted(schema: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (formatted({"type": "string", "minLength": 3, "maxLength": 1}), "response_format"),
        (formatted({"type": "string", "pattern": "^a{3,1}$"}), "response_format"),
        (formatted({"items": [{"anyOf": [{"pattern": "^(a{1,2}){ 10 , 9 }$"}]}]}), "response_format"),
        ({"json_schema": {"minLength": 1.5, "maxLength": 1}}, "json_schema"),
        ({"grammar": 'root ::= "a"{3,1}'}, "grammar"),
        ({"grammar": f'root ::= "a"{{1{"0" * 5000},1}}'}, "grammar"),
        ({"tools": [{"function": {"parameters": {"x": {"pattern": "a{2,1}"}}}}]}, "tools"),
    ],
)
def test_a_least_that_is_greater_than_the_most_is_refused_by_name(body: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_reversed_bounds(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        {},
        formatted({"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^a{1,3}b{2,}c{4}$"}),
        formatted({"pattern": r"^a\{3,1}$"}),
        {"grammar": 'root ::= "a"{9,10}', "tools": None, "json_schema": 5},
    ],
)
def test_everything_else_passes(body: dict[str, object]) -> None:
    refuse_reversed_bounds(body)


def test_a_schema_may_be_deeper_than_python_recurses() -> None:
    schema: object = {"minLength": 2, "maxLength": 1}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest):
        refuse_reversed_bounds(formatted(schema))
