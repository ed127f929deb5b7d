"""The scorer `prefix`."""

from __future__ import annotations

from lbcore.policies.scorers.prefix import Prefix
from tests.unit.policies.workers import prompt, worker

WORKERS = worker("a"), worker("b")


def test_the_score_is_the_held_part_of_the_prompt() -> None:
    assert Prefix().score(prompt(1000, b=250), WORKERS) == [0.0, 0.25]


def test_an_empty_prompt_is_held_by_nobody() -> None:
    assert Prefix().score(prompt(0, b=0), WORKERS) == [0.0, 0.0]
