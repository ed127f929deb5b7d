"""How a policy is written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.policies.parse import parse_policy, written_policy

names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("gie", "gie", {}),
        ("gie(queue=2)", "gie", {"queue": 2.0}),
        (" gie ( queue = 2 , kv=.5,prefix=3e0 ) ", "gie", {"queue": 2.0, "kv": 0.5, "prefix": 3.0}),
        ("gie(queue=-1)", "gie", {"queue": -1.0}),
    ],
)
def test_a_name_may_have_parameters_in_brackets(text: str, name: str, values: dict[str, float]) -> None:
    assert parse_policy(text) == (name, values)


@pytest.mark.parametrize("text", ["", " ", "gie)", "gie(", "(queue=2)", "gie(queue=2", "gie(queue=2) x", "gie queue=2"])
def test_what_is_not_of_the_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not written as name or as name"):
        parse_policy(text)


@pytest.mark.parametrize("inside", ["", " ", "queue", "queue=", "=2", "queue=2,", ",queue=2", "queue=2 kv=3", "a(b)=2"])
def test_brackets_hold_pairs_and_nothing_else(inside: str) -> None:
    with pytest.raises(ValueError, match="which is not written as parameter=value"):
        parse_policy(f"gie({inside})")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "two", "1_000", "0x10", "٣", "1.2.3", "--1", "True"])
def test_a_value_is_a_finite_number_in_plain_digits(value: str) -> None:
    with pytest.raises(ValueError, match="for queue, which is no finite number"):
        parse_policy(f"gie(queue={value})")


def test_a_parameter_is_given_once() -> None:
    with pytest.raises(ValueError, match="gives queue twice"):
        parse_policy("gie(queue=1,kv=1,queue=1)")


@pytest.mark.parametrize(
    ("values", "text"),
    [({}, "gie"), ({"queue": 2.0, "kv": 0.05}, "gie(queue=2,kv=0.05)"), ({"a": 1e22}, "gie(a=1e+22)")],
)
def test_numbers_are_written_as_short_as_they_can_be(values: dict[str, float], text: str) -> None:
    assert written_policy("gie", values) == text


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(name=names, values=st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_what_is_written_is_read_as_the_same(name: str, values: dict[str, float]) -> None:
    assert parse_policy(written_policy(name, values)) == (name, values)


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(text=st.text(alphabet="ab=(), 1.e-_\n", max_size=20))
def test_any_text_is_read_or_refused_with_a_reason(text: str) -> None:
    try:
        name, values = parse_policy(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"^(is not written as|has .* which is|gives .* twice)"):
            parse_policy(text)
    else:
        assert parse_policy(written_policy(name, values)) == (name, values)
