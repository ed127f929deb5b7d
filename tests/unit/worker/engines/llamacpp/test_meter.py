"""Speeds measured from what requests had reached when."""

from __future__ import annotations

import pytest

from worker.engines.llamacpp.meter import MIN_PREFILL_TOKENS, MIN_STEPS, SpeedMeter


def test_nothing_is_known_before_anything_was_measured() -> None:
    meter = SpeedMeter()
    assert (meter.prefill_tokens_per_s, meter.step_time_ms) == (0.0, 0.0)


def test_prefill_speed_is_tokens_over_the_time_they_took() -> None:
    meter = SpeedMeter()
    meter.reached("a", 0, False, 0, 1, now=10.0)
    meter.reached("a", 500, False, 0, 1, now=10.5)
    meter.reached("a", 1000, True, 0, 1, now=11.0)
    assert meter.prefill_tokens_per_s == pytest.approx(1000)


def test_prompts_that_are_computed_together_count_together() -> None:
    meter = SpeedMeter()
    for key in "abc":
        meter.reached(key, 0, False, 0, 1, now=0.0)
    for key in "abc":
        meter.reached(key, 200, True, 0, 1, now=1.0)
    assert meter.prefill_tokens_per_s == pytest.approx(600)


def test_time_in_which_no_prompt_is_computed_does_not_count() -> None:
    meter = SpeedMeter()
    for start in (0.0, 100.0):
        meter.reached(start, 0, False, 0, 1, now=start)
        meter.reached(start, 100, True, 0, 1, now=start + 0.1)
        meter.left(start, now=start + 50)
    assert meter.prefill_tokens_per_s == pytest.approx(1000)


def test_a_short_prompt_says_nothing() -> None:
    meter = SpeedMeter()
    meter.reached("a", 0, False, 0, 1, now=0.0)
    meter.reached("a", MIN_PREFILL_TOKENS - 1, True, 0, 1, now=1.0)
    assert meter.prefill_tokens_per_s == 0.0


def test_a_new_speed_is_believed_after_a_while() -> None:
    meter = SpeedMeter()
    for number in range(20):
        meter.reached(number, 0, False, 0, 1, now=number)
        meter.reached(number, 1000, True, 0, 1, now=number + (0.1 if number < 10 else 0.5))
    assert 2000 < meter.prefill_tokens_per_s < 2500


@pytest.mark.parametrize("choices", [1, 4])
def test_a_step_gives_every_choice_a_token(choices: int) -> None:
    meter = SpeedMeter()
    meter.reached("a", 0, False, 0, choices, now=0.0)
    meter.reached("a", 5, True, 0, choices, now=1.0)
    meter.reached("a", 5, True, MIN_STEPS * choices, choices, now=1.0 + MIN_STEPS * 0.02)
    assert meter.step_time_ms == pytest.approx(20)


def test_the_average_moves_and_does_not_jump() -> None:
    meter = SpeedMeter()
    meter.reached("a", 5, True, 0, 1, now=0.0)
    meter.reached("a", 5, True, 10, 1, now=0.1)
    meter.reached("a", 5, True, 20, 1, now=1.1)
    assert 10 < meter.step_time_ms < 100


def test_a_request_that_leaves_in_prefill_ends_it() -> None:
    meter = SpeedMeter()
    meter.reached("a", 0, False, 0, 1, now=0.0)
    meter.left("a", now=1.0)
    meter.left("never came", now=1.0)
    meter.reached("b", 0, False, 0, 1, now=5.0)
    meter.reached("b", 100, True, 0, 1, now=5.1)
    assert meter.prefill_tokens_per_s == pytest.approx(1000)
