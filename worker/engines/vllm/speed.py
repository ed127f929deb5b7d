"""How fast vLLM is, from its own engine's clock. Pure.

Every request comes back with the moments at which it was scheduled and had its first token, and every step with the
gaps between tokens; both were stamped inside the engine core, where no event loop is late.
"""

from __future__ import annotations

from collections.abc import Sequence

WINDOW_TOKENS = 32_768
"""Prompt tokens that prefill speed is measured over; what is older fades by half each time as many have come."""
MIN_PREFILL_TOKENS = 32
"""Shorter prompts say more of the cost of a step than of the speed of computing prompts."""
_KEEP = 0.97
"""Weight of the past against one more step: the last 30 dominate."""


class EngineSpeed:
    """Both figures are 0 until something was measured.

    Prefill speed is that of the engine, not of one request: prompt tokens computed over the time in which at least one
    prompt was being computed.
    """

    def __init__(self) -> None:
        self.step_time_ms = 0.0
        self._tokens = 0.0
        self._seconds = 0.0
        self._covered_until = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def prefilled(self, computed_tokens: int, scheduled_at: float, first_token_at: float) -> None:
        """A prompt is computed; times in seconds of the engine's clock. Told in the order of first tokens."""
        begin = max(scheduled_at, self._covered_until)
        self._covered_until = max(self._covered_until, first_token_at)
        if computed_tokens < MIN_PREFILL_TOKENS or first_token_at <= scheduled_at:
            return
        self._tokens += computed_tokens
        self._seconds += max(0.0, first_token_at - begin)
        if self._tokens > WINDOW_TOKENS:
            self._tokens /= 2
            self._seconds /= 2

    def stepped(self, gaps_s: Sequence[float]) -> None:
        """One step has given a token to each of the running sequences, this long after the one before, in seconds."""
        if gaps_s:
            step_ms = 1000 * sum(gaps_s) / len(gaps_s)
            average_ms = self.step_time_ms
            self.step_time_ms = average_ms * _KEEP + step_ms * (1 - _KEEP) if average_ms else step_ms
