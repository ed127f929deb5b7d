"""The scorer `prefix_hit`."""

from __future__ import annotations

from lbcore.policies.scorers.prefix_hit import PrefixHit
from lbcore.types import PickRequest, WorkerId
from tests.fleet import MODEL, endpoint

A, B = endpoint("a"), endpoint("b")


def test_the_score_is_the_held_part_of_the_prompt() -> None:
    assert PrefixHit().score(PickRequest(MODEL, 1000, {WorkerId("b"): 250}), [A, B]) == [0.0, 0.25]


def test_an_empty_prompt_is_held_by_nobody() -> None:
    assert PrefixHit().score(PickRequest(MODEL), [A, B]) == [0.0, 0.0]
