"""The cost `hit_and_load`."""

from __future__ import annotations

import pytest

from lbcore.policies.costs.hit_and_load import HitAndLoad
from tests.unit.policies.workers import by_cost, costs, prompt, worker


def test_missing_part_and_relative_load_are_weighed() -> None:
    workers = worker("a", running=4), worker("b", running=10), worker("c")
    assert costs(HitAndLoad(2, 0.5), prompt(1000, a=250, b=1000), *workers) == pytest.approx([1.7, 0.5, 2])


def test_an_idle_fleet_is_ranked_by_hits() -> None:
    workers = worker("a"), worker("b"), worker("c")
    assert by_cost(HitAndLoad(), prompt(1000, b=500, c=900), *workers) == ["c", "b", "a"]


def test_each_holder_is_credited_with_what_it_holds() -> None:
    most, nearly, none = costs(HitAndLoad(), prompt(1000, a=1000, b=990), worker("a"), worker("b"), worker("c"))
    assert most < nearly < none


def test_out_of_balance_only_the_tokens_in_front_count() -> None:
    crowded, free = worker("a", running=65, queued_tokens=10), worker("b", sent_tokens=700)
    assert costs(HitAndLoad(), prompt(1000, a=1000), crowded, free) == [10, 700]


def test_a_gap_is_no_imbalance_while_it_is_small_beside_the_load() -> None:
    busy, less = worker("a", running=200), worker("b", running=135)
    assert by_cost(HitAndLoad(), prompt(1000, a=1000), busy, less) == ["a", "b"]


def test_two_requests_more_do_not_switch_affinity_off() -> None:
    holder, free = worker("a", running=2), worker("b")
    assert by_cost(HitAndLoad(load_weight=0.05), prompt(1000, a=1000), holder, free) == ["a", "b"]


def test_an_empty_prompt_goes_by_the_tokens_in_front() -> None:
    assert costs(HitAndLoad(), prompt(0), worker("a", sent_tokens=3), worker("b", queued_tokens=5)) == [3, 5]
