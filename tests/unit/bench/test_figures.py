from __future__ import annotations

import math

import pytest

from bench.dataplane.figures import histogram, percentile, poisson_arrivals, summary


@pytest.mark.parametrize(("percent", "expected"), [(1, 1), (50, 50), (90, 90), (99, 99), (100, 100)])
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_a_percentile_of_few_and_of_none() -> None:
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert math.isnan(percentile([], 50))


def test_a_summary_sorts_and_scales() -> None:
    assert summary([3e6, 1e6, 2e6], 1e-6) == {"count": 3, "p50": 2, "p90": 3, "p99": 3, "max": 3, "mean": 2}
    assert summary([]) == {"count": 0}


def test_a_histogram_counts_between_powers_of_two() -> None:
    assert histogram([0.3, 0.49, 0.5, 1.0, 1.9, 100.0]) == {"0.5": 2, "1": 1, "2": 2, "128": 1}
    assert sum(histogram([-1.0, 0.0, 2.0]).values()) == 3


def test_arrivals_are_the_same_for_a_seed_and_have_the_rate() -> None:
    arrivals = poisson_arrivals(500, 4, seed=1)
    assert arrivals == poisson_arrivals(500, 4, seed=1) != poisson_arrivals(500, 4, seed=2)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0
    assert arrivals[-1] < 4
    assert len(arrivals) == pytest.approx(2000, rel=0.1)


def test_arrivals_of_a_longer_run_begin_like_those_of_a_shorter() -> None:
    short = poisson_arrivals(100, 1, seed=3)
    assert poisson_arrivals(100, 2, seed=3)[: len(short)] == short
