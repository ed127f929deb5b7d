"""Policies by name."""

from __future__ import annotations

import pytest

from lbcore.errors import ConfigError
from lbcore.policies.base import WeightedScores
from lbcore.policies.presets import DEFAULT_POLICY, PRESETS
from lbcore.policies.registry import COSTS, FILTERS, PICKERS, SCORERS, build_policy


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_can_be_built(name: str) -> None:
    assert build_policy(name).name == name


def test_a_policy_has_the_parts_its_preset_names() -> None:
    policy = build_policy("prefix_affinity")
    assert policy.cost == WeightedScores(((SCORERS["prefix_hit"](), 2.0), (SCORERS["least_requests"](), 1.0)))
    assert policy.picker == PICKERS["best"]()
    assert policy.filters == tuple(FILTERS[name]() for name in ("role", "untried", "ready", "has_room"))


def test_the_default_is_a_preset_that_counts_milliseconds() -> None:
    assert build_policy(DEFAULT_POLICY).cost == COSTS["marginal_delay"]()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as refusal:
        build_policy("best")
    assert all(name in refusal.value.message for name in ("'best'", *PRESETS))


def test_every_part_is_used_by_some_preset() -> None:
    specs = PRESETS.values()
    assert {spec.picker for spec in specs} == set(PICKERS)
    assert {spec.cost for spec in specs if spec.cost} == set(COSTS)
    assert {name for spec in specs for name in spec.scorers} == set(SCORERS)
    assert {name for spec in specs for name in spec.filters} == set(FILTERS)
