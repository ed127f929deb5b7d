"""What parts read of the candidates."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.cost import prefill_ms
from lbcore.policies.measures import (
    FASTEST,
    SLOWEST,
    declared_speeds,
    expected_latencies_ms,
    first_token_ms,
    hit_ratios,
    imbalanced,
    preferred_first,
    requests_in_flight,
    tokens_in_front,
    uncached_tokens,
    waiting_requests,
)
from tests.unit.policies.workers import prompt, worker

laws = settings(derandomize=True, max_examples=200, deadline=None, database=None)


def test_what_was_sent_counts_among_all_and_among_those_that_wait() -> None:
    workers = [worker(running=3, queued=2, sent=1, queued_tokens=50, sent_tokens=7)]
    assert requests_in_flight(workers) == [6]
    assert waiting_requests(workers) == [3]
    assert tokens_in_front(workers) == [57]


def test_hits_are_parts_of_the_prompt_and_save_the_rest() -> None:
    workers = worker("a"), worker("b")
    assert hit_ratios(prompt(1000, b=250), workers) == [0, 0.25]
    assert uncached_tokens(prompt(1000, b=250), workers) == [1000, 750]
    assert hit_ratios(prompt(1000), workers) == hit_ratios(prompt(0, a=0), workers) == [0, 0]


def test_the_first_token_comes_after_the_queue_and_the_own_prefill() -> None:
    workers = worker("a", wait_ms=50, token_ms=0.2), worker("b", wait_ms=500)
    assert first_token_ms(prompt(1000), workers, [600, 1000], 0.0) == pytest.approx([50 + 120, 600])
    assert first_token_ms(prompt(1000), workers, [1000, 1000], 0.25) == pytest.approx([200, 350])


def test_an_own_token_costs_more_the_more_stand_before_it() -> None:
    attentive = replace(worker(), attention_ratio=1e-3)
    whole, rest = (first_token_ms(prompt(1000), [attentive], [tokens], 0.0)[0] for tokens in (1000.0, 400.0))
    assert whole == pytest.approx(prefill_ms(0.1, 1e-3, 1000, 0))
    assert rest == pytest.approx(prefill_ms(0.1, 1e-3, 1000, 600))


@laws
@given(speeds=st.lists(st.floats()))
def test_speeds_are_positive_and_finite_whatever_is_declared(speeds: list[float]) -> None:
    found = declared_speeds([worker(speed=speed) for speed in speeds])
    assert all(SLOWEST <= speed <= FASTEST for speed in found)


def test_the_mean_is_of_those_declared() -> None:
    speeds = [2.0, 0.0, 4.0, nan, inf, -3.0]
    assert declared_speeds([worker(speed=speed) for speed in speeds]) == [2, 3, 4, 3, 3, 3]
    assert declared_speeds([worker(speed=speed) for speed in (0.0, -1.0, nan)]) == [1, 1, 1]


def test_of_an_even_number_of_latencies_the_median_is_between_the_middle_ones() -> None:
    seen = [worker(latency_ms=ms, latency_requests=1) for ms in (100, 900, 200, 400)]
    assert expected_latencies_ms([*seen, worker()])[4] == 300


@pytest.mark.parametrize(
    ("loads", "out_of_balance"), [([], False), ([5], False), ([65, 0], True), ([64, 0], False), ([200, 135], False)]
)
def test_loads_are_out_of_balance_by_gap_and_by_ratio(loads: list[float], out_of_balance: bool) -> None:
    assert imbalanced(loads, gap=64, ratio=1.5) is out_of_balance


@laws
@given(pairs=st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans())))
def test_the_preferred_are_cheaper_than_the_others_and_each_group_keeps_its_order(
    pairs: list[tuple[float, bool]],
) -> None:
    before, preferred = [cost for cost, _ in pairs], [first for _, first in pairs]
    after = preferred_first(before, preferred)
    assert all(isfinite(cost) for cost in after)
    assert [cost for cost, first in zip(after, preferred, strict=True) if first] == [c for c, first in pairs if first]
    others = [(cost, new) for (cost, first), new in zip(pairs, after, strict=True) if not first]
    assert [new for _, new in sorted(others)] == sorted(new for _, new in others)
    if any(preferred) and others:
        assert max(cost for cost, first in pairs if first) < min(new for _, new in others)
