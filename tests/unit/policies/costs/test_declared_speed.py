"""The cost `declared_speed`."""

from __future__ import annotations

from lbcore.policies.costs.declared_speed import DeclaredSpeed
from tests.unit.policies.workers import costs, prompt, worker


def test_the_faster_costs_less_whatever_it_has_to_do() -> None:
    assert costs(DeclaredSpeed(), prompt(), worker("a", speed=2, running=50), worker("b", speed=1)) == [-2, -1]


def test_those_that_declare_nothing_are_as_fast_as_the_mean() -> None:
    assert costs(DeclaredSpeed(), prompt(), worker("a", speed=3), worker("b", speed=1), worker("c")) == [-3, -1, -2]
