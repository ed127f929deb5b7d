"""A server's speed, from what its streams show."""

from __future__ import annotations

import pytest

from worker.engines.openai.meter import MIN_STEPS, WINDOW_TOKENS, StreamMeter


def test_nothing_is_known_at_first() -> None:
    meter = StreamMeter()
    meter.reached("nobody", 5, 1, 1.0)
    meter.left("nobody", 5, 1.0)
    assert (meter.prefill_tokens_per_s, meter.step_time_ms, meter.prompt_tokens) == (0, 0, 0)


def test_one_prompt_after_the_other() -> None:
    meter = StreamMeter()
    for number in range(3):
        meter.sent(number, 10.0 * number)
        meter.reached(number, 0, 1, 10.0 * number + 0.1)
        meter.reached(number, 1, 1, 10.0 * number + 0.5)
        meter.left(number, 1000, 10.0 * number + 9)
    assert meter.prefill_tokens_per_s == pytest.approx(2000)
    assert meter.prompt_tokens == pytest.approx(1000)


def test_prompts_side_by_side_share_the_time() -> None:
    meter = StreamMeter()
    for name in "abcd":
        meter.sent(name, 5.0)
    # The server computes 2000 tokens a second, whoever they belong to.
    for place, name in enumerate("abcd", 1):
        meter.reached(name, 1, 1, 5.0 + place * 0.5)
    for name in "abcd":
        meter.left(name, 1000, 30.0)
    assert meter.prefill_tokens_per_s == pytest.approx(2000)


def test_requests_that_end_in_their_prompt_and_short_ones_say_nothing() -> None:
    meter = StreamMeter()
    meter.sent("aborted", 0.0)
    meter.left("aborted", 0, 1.0)
    meter.sent("short", 1.0)
    meter.reached("short", 1, 1, 2.0)
    meter.left("short", 5, 3.0)
    assert meter.prefill_tokens_per_s == 0
    meter.sent("long", 4.0)
    meter.reached("long", 1, 1, 5.0)
    meter.left("long", 100, 6.0)
    assert meter.prefill_tokens_per_s == pytest.approx(100)


def test_waiting_for_others_is_no_measure_of_speed_where_there_is_a_better_one() -> None:
    meter = StreamMeter()
    for number, (seconds, has_queue, expected) in enumerate([(10, True, 10), (0.1, False, 20), (50, True, 20)]):
        now = 100.0 * number
        meter.sent(number, now)
        meter.reached(number, 1, 1, now + seconds, has_queue=has_queue)
        meter.left(number, 100, now + 60)
        assert meter.prefill_tokens_per_s == pytest.approx(expected, rel=0.02)


def test_the_past_fades() -> None:
    meter = StreamMeter()
    now = 0.0
    for speed in (100, 1000):
        for _ in range(12):
            meter.sent("r", now)
            now += WINDOW_TOKENS / 4 / speed
            meter.reached("r", 1, 1, now)
            meter.left("r", WINDOW_TOKENS // 4, now)
    assert meter.prefill_tokens_per_s > 700


@pytest.mark.parametrize("choices", [1, 3])
def test_steps_are_measured_over_several_tokens(choices: int) -> None:
    meter = StreamMeter()
    meter.sent("r", 0.0)
    for token in range(1, choices * MIN_STEPS * 3 + 2):
        meter.reached("r", token, choices, 1.0 + (token - 1) / choices * 0.02)
    assert meter.step_time_ms == pytest.approx(20, rel=0.05)
