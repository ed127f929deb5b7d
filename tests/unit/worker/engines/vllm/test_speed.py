"""Speed from the engine's own stamps."""

from __future__ import annotations

import pytest

from worker.engines.vllm.speed import MIN_PREFILL_TOKENS, WINDOW_TOKENS, EngineSpeed


def test_nothing_is_known_before_anything_was_measured() -> None:
    speed = EngineSpeed()
    assert (speed.prefill_tokens_per_s, speed.step_time_ms) == (0, 0)


def test_one_prompt_after_the_other_adds_up() -> None:
    speed = EngineSpeed()
    speed.prefilled(1000, 10.0, 10.5)
    speed.prefilled(1000, 20.0, 20.5)
    assert speed.prefill_tokens_per_s == pytest.approx(2000)


def test_prompts_computed_at_once_share_the_time() -> None:
    speed = EngineSpeed()
    speed.prefilled(1000, 10.0, 11.0)
    speed.prefilled(1000, 10.0, 11.0)
    speed.prefilled(2000, 10.5, 12.0)
    assert speed.prefill_tokens_per_s == pytest.approx(2000)


def test_a_short_prompt_says_nothing() -> None:
    speed = EngineSpeed()
    speed.prefilled(MIN_PREFILL_TOKENS - 1, 10.0, 11.0)
    speed.prefilled(0, 11.0, 11.0)
    assert speed.prefill_tokens_per_s == 0


def test_the_past_fades() -> None:
    speed = EngineSpeed()
    now = 0.0
    for tokens_per_s in (1000.0, 8000.0):
        for _ in range(8 * WINDOW_TOKENS // 1000):
            speed.prefilled(1000, now, now + 1000 / tokens_per_s)
            now += 1000 / tokens_per_s
    assert speed.prefill_tokens_per_s == pytest.approx(8000, rel=0.05)


def test_a_steps_time_is_the_mean_gap_of_its_sequences() -> None:
    speed = EngineSpeed()
    speed.stepped([0.02, 0.04])
    speed.stepped([])
    assert speed.step_time_ms == pytest.approx(30)
    for _ in range(300):
        speed.stepped([0.01])
    assert speed.step_time_ms == pytest.approx(10, rel=0.01)
