"""Explanations there and back."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.api.v1 import routing_pb2
from lbcore.types import Candidate, Epoch, Explanation, Route, Target, Ticket, WorkerId
from lbcore.wire import convert

MEASURES = st.floats(0, 1e11)
COSTS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)

explanations = st.builds(
    Explanation,
    TEXTS,
    st.integers(0, 2**32 - 1),
    MEASURES,
    TEXTS,
    st.lists(
        st.builds(
            Candidate,
            TEXTS.map(WorkerId),
            COSTS,
            MEASURES,
            st.dictionaries(TEXTS, COSTS, max_size=3),
            excluded_by=TEXTS,
        ),
        max_size=3,
    ).map(tuple),
)


@given(explanations)
def test_an_explanation_survives_with_its_route(explanation: Explanation) -> None:
    route = Route(Target(WorkerId("w0"), Epoch(1), "w0:1"), Ticket(7), (), 1.5, explanation)
    assert convert.route_from_proto(convert.route_to_proto(route)) == route


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_numbers_that_are_none_are_nothing(number: float) -> None:
    candidate = routing_pb2.Candidate(cost=number, cached_token_count=number, terms={"own": number})
    message = routing_pb2.Explanation(waited_ms=number, candidates=[candidate])
    found = convert.explanation_from_proto(message)
    assert found == Explanation("", 0, 0.0, "", (Candidate(WorkerId(""), 0.0, 0.0, {"own": 0.0}),))
