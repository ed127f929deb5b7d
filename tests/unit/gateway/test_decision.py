"""The header that says why a request went where it went: short, ASCII, and the same facts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.decision import MAX_BYTES, SHOWN, decision_header
from lbcore.types import Candidate, Epoch, Explanation, Route, Target, Ticket, WorkerId

texts = st.text(st.characters(codec="utf-8"), max_size=300)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def route(name: str, explanation: Explanation | None) -> Route:
    return Route(Target(WorkerId(name), Epoch(1), "10.0.0.7:1"), Ticket(1), (), 31.27, explanation)


def candidate(number: int) -> Candidate:
    terms = {"wait": 0.0, "own": 40.04 + number, "behind": 0.00012}
    return Candidate(WorkerId(f"w{number}"), 41.26 + number, 3071.6, terms)


def test_it_has_the_worker_the_reason_and_the_cheapest_candidates() -> None:
    out = Candidate(WorkerId("w99"), excluded_by="ready")
    fleet = (*(candidate(number) for number in range(20)), out)
    said = json.loads(decision_header(route("w0", Explanation("cost", 4000, 12.34, "cheapest of 20", fleet))))
    candidates = said.pop("candidates")
    assert said == {
        "worker": "w0",
        "policy": "cost",
        "predicted_ttft_ms": 31.3,
        "waited_ms": 12.3,
        "prompt_tokens": 4000,
        "reason": "cheapest of 20",
    }
    assert [one["worker"] for one in candidates] == [f"w{number}" for number in range(SHOWN)]
    assert candidates[0] == {"worker": "w0", "cost": 41.3, "cached": 3072, "terms": {"own": 40.0}}


def test_without_an_explanation_the_scheduler_was_gone() -> None:
    said = json.loads(decision_header(route("w0", None)))
    assert said["worker"] == "w0"
    assert said["reason"].startswith("the scheduler could not be asked")


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(
    name=texts,
    explanation=st.builds(
        Explanation,
        texts,
        st.integers(0, 2**32),
        st.floats(0, 1e12),
        texts,
        st.lists(
            st.builds(Candidate, texts.map(WorkerId), numbers, st.floats(0, 1e12), st.dictionaries(texts, numbers)),
            max_size=20,
        ).map(tuple),
    ),
)
def test_whatever_the_names_it_is_ascii_short_one_line_and_json(name: str, explanation: Explanation) -> None:
    header = decision_header(route(name, explanation))
    assert len(header) <= MAX_BYTES
    assert header.isascii()
    assert header.isprintable()
    assert set(json.loads(header)) >= {"worker", "policy", "predicted_ttft_ms", "waited_ms", "reason"}


@pytest.mark.parametrize("letter", ["\U0001f600", "\x00", '"', "x"])
def test_long_names_are_cut_before_the_header_is_too_long(letter: str) -> None:
    fleet = tuple(Candidate(WorkerId(f"{number}{letter * 5000}"), 1.0) for number in range(20))
    header = decision_header(route(letter * 5000, Explanation(letter * 5000, 1, 1.0, letter * 5000, fleet)))
    assert len(header) <= MAX_BYTES
    assert json.loads(header)["worker"] == letter * 80
