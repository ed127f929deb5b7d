"""Policies by name, with and without parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from lbcore.errors import ConfigError
from lbcore.policies.base import WeightedScores, part_name
from lbcore.policies.costs.hit_and_load import HitAndLoad
from lbcore.policies.costs.hot_and_cold import HotAndCold
from lbcore.policies.costs.weighted_queue import WeightedQueue
from lbcore.policies.presets import DEFAULT_POLICY, PRESETS
from lbcore.policies.registry import (
    COSTS,
    FILTERS,
    PICKERS,
    SCORERS,
    build_policy,
    check_policy,
    policy_parameters,
)

every_policy = pytest.mark.parametrize("name", sorted(PRESETS))


@every_policy
def test_every_preset_can_be_built_and_has_its_name(name: str) -> None:
    assert build_policy(name).name == name


@every_policy
def test_a_policy_is_the_same_with_its_own_parameters_written_out(name: str) -> None:
    written = ", ".join(f"{key} = {item.default}" for key, item in policy_parameters(name).items())
    if written:
        assert build_policy(f"{name}({written})") == build_policy(name)


@every_policy
def test_the_name_of_a_policy_with_other_parameters_builds_it_again(name: str) -> None:
    for key, item in policy_parameters(name).items():
        other = item.default + 0.125
        policy = build_policy(f" {name} ( {key} = {other}0 )")
        assert policy != build_policy(name)
        assert policy.name == f"{name}({key}={other})"
        assert build_policy(policy.name) == policy


def test_a_policy_has_the_parts_its_preset_names() -> None:
    policy = build_policy("gie")
    assert policy.cost == WeightedScores(
        ((SCORERS["queue"](), 2.0), (SCORERS["kv"](), 2.0), (SCORERS["prefix"](), 3.0))
    )
    assert policy.picker == PICKERS["best"]()
    assert policy.filters == tuple(FILTERS[name]() for name in ("role", "untried", "ready", "has_room", "objective"))


def test_the_default_is_a_preset_that_counts_milliseconds() -> None:
    assert build_policy(DEFAULT_POLICY).cost == COSTS["marginal_delay"]()


def test_parameters_are_fields_of_the_cost() -> None:
    policy = build_policy("cache_aware(hit_weight=1,load_weight=0.05)")
    assert policy.cost == HitAndLoad(hit_weight=1, load_weight=0.05)
    assert policy.name == "cache_aware(load_weight=0.05)"


def test_parameters_are_weights_of_scorers() -> None:
    policy = build_policy("gie(prefix=3,kv=0)")
    assert policy.cost == WeightedScores(
        ((SCORERS["queue"](), 2.0), (SCORERS["kv"](), 0.0), (SCORERS["prefix"](), 3.0))
    )
    assert policy.name == "gie(kv=0)"


def test_presets_share_a_part_with_parameters_of_their_own() -> None:
    assert build_policy("vllm_dp").cost == WeightedQueue(4)
    assert build_policy("fd_metrics_score").cost == WeightedQueue(10)
    assert build_policy("vllm_dp(waiting_weight=10)").name == "vllm_dp(waiting_weight=10)"


def test_the_ends_of_a_range_are_in_it() -> None:
    assert build_policy("prequal(quantile=0)").cost == HotAndCold(0)
    assert build_policy("prequal(quantile=1)").cost == HotAndCold(1)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as refusal:
        build_policy("best")
    assert all(name in refusal.value.message for name in ("'best'", *PRESETS))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gie(prefx=3)", "has no parameter 'prefx'; there are queue, kv, prefix"),
        ("round_robin(turn=3)", "has no parameter 'turn'; it has none"),
        ("gie(kv=-1)", "has -1 for kv, which is below 0"),
        ("gie(kv=2e9)", "has 2e+09 for kv, which is above 1e+09"),
        ("prequal(quantile=1.01)", "has 1.01 for quantile, which is above 1"),
        ("consistent_hash(bound=0.9)", "has 0.9 for bound, which is below 1"),
        ("gie(kv=nan)", "has 'nan' for kv, which is no finite number"),
        ("gie(kv=1,kv=1)", "gives kv twice"),
        ("gie(", "is not written as name or as name(parameter=value, parameter=value)"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_there_is(text: str, problem: str) -> None:
    assert check_policy(text) == problem
    with pytest.raises(ConfigError) as refusal:
        build_policy(text)
    assert refusal.value.message == f"policy: {text!r} {problem}"


def test_nothing_is_wrong_with_a_policy_that_can_be_built() -> None:
    assert check_policy("gie(kv=0)") is None


@every_policy
def test_no_two_parts_of_a_preset_have_a_parameter_of_one_name(name: str) -> None:
    spec = PRESETS[name]
    parts = [COSTS[spec.cost]] if spec.cost else []
    found = [item.name for part in (*parts, PICKERS[spec.picker]) if is_dataclass(part) for item in fields(part)]
    assert len({*found, *spec.scorers}) == len(found) + len(spec.scorers)


@every_policy
def test_parameters_that_a_preset_sets_are_parameters_of_its_parts(name: str) -> None:
    known = policy_parameters(name)
    assert all(known[key].default == value for key, value in PRESETS[name].parameters.items())


@every_policy
def test_a_default_is_inside_its_bounds(name: str) -> None:
    assert all(item.least <= item.default <= item.most for item in policy_parameters(name).values())


@pytest.mark.parametrize("table", [FILTERS, SCORERS, COSTS, PICKERS], ids=["filters", "scorers", "costs", "pickers"])
def test_a_part_goes_by_the_name_of_its_file(table: Mapping[str, Callable[[], Any]]) -> None:
    assert {name: part_name(part()) for name, part in table.items()} == {name: name for name in table}


def test_every_part_is_used_by_some_preset() -> None:
    specs = PRESETS.values()
    assert {spec.picker for spec in specs} == set(PICKERS)
    assert {spec.cost for spec in specs if spec.cost} == set(COSTS)
    assert {name for spec in specs for name in spec.scorers} == set(SCORERS)
    assert {name for spec in specs for name in spec.filters} == set(FILTERS)
