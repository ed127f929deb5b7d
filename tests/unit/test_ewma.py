"""Decaying averages."""

from __future__ import annotations

from math import e

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.ewma import DecayingAverage


def average() -> DecayingAverage:
    return DecayingAverage(prior=10.0, prior_weight=1.0, tau_s=60.0)


def test_nothing_observed_reads_as_the_prior() -> None:
    assert average().read(123.0) == 10.0


def test_an_observation_counts_as_much_as_a_prior_of_its_weight() -> None:
    mean = average()
    mean.observe(20.0, now=5.0)
    assert mean.read(5.0) == 15.0


def test_a_weight_falls_to_one_e_th_in_tau() -> None:
    mean = average()
    mean.observe(20.0, now=0.0)
    assert mean.read(60.0) == pytest.approx((20.0 / e + 10.0) / (1 / e + 1))


def test_after_a_long_silence_the_prior_is_back() -> None:
    mean = average()
    for now in range(100):
        mean.observe(20.0, float(now))
    assert mean.read(10_000.0) == pytest.approx(10.0)


def test_reading_ahead_changes_nothing() -> None:
    mean = average()
    mean.observe(20.0, now=0.0)
    mean.read(1e6)
    assert mean.read(0.0) == 15.0


def test_a_time_before_the_last_observation_reads_as_that_moment() -> None:
    mean = average()
    mean.observe(20.0, now=100.0)
    assert mean.read(0.0) == mean.read(100.0)


@settings(derandomize=True, max_examples=50, database=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1000), st.floats(0.01, 100))))
def test_the_average_stays_between_the_least_and_the_greatest_it_has_seen(
    observations: list[tuple[float, float, float]],
) -> None:
    mean = DecayingAverage(prior=0.5, prior_weight=2.0, tau_s=30.0)
    for value, now, weight in observations:
        mean.observe(value, now, weight)
    values = [0.5, *(value for value, _, _ in observations)]
    assert min(values) - 1e-9 <= mean.read(1000.0) <= max(values) + 1e-9
