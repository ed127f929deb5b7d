"""What an engine measures of its own speed, from the steps it took. Whoever drives the steps brings their durations."""

from __future__ import annotations

_KEEP = 0.9
"""Weight of the past against one more step: the last ten steps dominate, half a second at 50 ms a step."""


MIN_PREFILL_TOKENS = 64
"""Prompt tokens in a step from which its length says something of their price; with fewer it is noise of the decoding
step, and counts only while nothing better is known."""


class StepMeter:
    """Moving averages over steps; both are 0 until something was measured."""

    def __init__(self) -> None:
        self.step_time_ms = 0.0
        """Time of a step that only decodes."""
        self._prefill_steps = 0.0
        self._prefill_tokens = 0.0
        self._prefill_ms = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens over the time by which their steps were longer than a decoding step.

        Against the whole time of the step a short prompt would look slow, and a long one would be believed to be.
        """
        extra_ms = self._prefill_ms - self._prefill_steps * self.step_time_ms
        return 1000 * self._prefill_tokens / extra_ms if extra_ms > 0 else 0.0

    def observe(self, prefill_tokens: int, decode_tokens: int, duration_ms: float) -> None:
        if prefill_tokens:
            if prefill_tokens < MIN_PREFILL_TOKENS and self._prefill_tokens:
                return
            self._prefill_steps = self._prefill_steps * _KEEP + 1
            self._prefill_tokens = self._prefill_tokens * _KEEP + prefill_tokens
            self._prefill_ms = self._prefill_ms * _KEEP + duration_ms
        elif decode_tokens:
            average_ms = self.step_time_ms
            self.step_time_ms = average_ms * _KEEP + duration_ms * (1 - _KEEP) if average_ms else duration_ms
