"""The speeds an engine measures of itself."""

from __future__ import annotations

import pytest

from worker.engines.step_meter import StepMeter


def test_nothing_measured_is_zero() -> None:
    meter = StepMeter()
    meter.observe(0, 0, 0.0)
    assert (meter.prefill_tokens_per_s, meter.step_time_ms) == (0.0, 0.0)


def test_prefill_speed_does_not_depend_on_the_length_of_the_prompts() -> None:
    short, long = StepMeter(), StepMeter()
    for meter, tokens in ((short, 10), (long, 2000)):
        meter.observe(tokens, 0, 5.0 + tokens / 20)
        meter.observe(0, 1, 5.0)
        meter.observe(tokens, 1, 5.0 + tokens / 20)
    assert short.prefill_tokens_per_s == pytest.approx(20_000)
    assert long.prefill_tokens_per_s == pytest.approx(20_000)


def test_an_engine_that_never_decodes_measures_its_prefill_all_the_same() -> None:
    meter = StepMeter()
    meter.observe(1000, 0, 50.0)
    assert meter.prefill_tokens_per_s == pytest.approx(20_000)


def test_a_step_that_computes_prompts_does_not_count_as_a_decoding_step() -> None:
    meter = StepMeter()
    meter.observe(0, 4, 10.0)
    meter.observe(2048, 4, 110.0)
    assert meter.step_time_ms == 10.0


def test_the_averages_follow_a_change() -> None:
    meter = StepMeter()
    for _ in range(50):
        meter.observe(0, 1, 10.0)
    for _ in range(50):
        meter.observe(0, 1, 20.0)
    assert meter.step_time_ms == pytest.approx(20.0, rel=0.01)


def test_a_prefill_faster_than_any_decoding_step_is_no_measurement() -> None:
    meter = StepMeter()
    meter.observe(0, 64, 2.0)
    meter.observe(100, 0, 1.0)
    assert meter.prefill_tokens_per_s == 0.0


def test_small_prompts_alone_tell_no_more_than_that_the_engine_is_not_slow() -> None:
    slow, fast = StepMeter(), StepMeter()
    slow.observe(75, 0, 10.0)
    fast.observe(75, 0, 0.5)
    assert slow.prefill_tokens_per_s == 0.0
    assert fast.prefill_tokens_per_s == pytest.approx(150_000)
