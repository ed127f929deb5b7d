"""What an engine measures of its own speed, from the steps it took. Whoever drives the steps brings their durations."""

from __future__ import annotations

from lbcore.cost import DEFAULT_PREFILL_MS_PER_TOKEN

_KEEP = 0.9
"""Weight of the past against one more step: the last ten steps dominate, half a second at 50 ms a step."""

ALONE_TOKENS = 512
"""Prompt tokens in a step from which its length says something of their price while the decoding step is not known:
until then what it says of fewer is mostly the fixed cost, by which a worker would seem many times slower than it is, be
given nothing, and never measure better. That it is no slower than that is worth saying where the scheduler would assume
less."""

ASSUMED_TOKENS_PER_S = 1000 / DEFAULT_PREFILL_MS_PER_TOKEN

_KEEP_RATIO = 0.99
"""The same for attention's share, which the model decides and no moment changes."""

MIN_PREFILL_TOKENS = 64
"""Prompt tokens in a step from which its length says something of their price; with fewer it is noise of the decoding
step, and counts only while nothing better is known."""

PRIOR_ATTENTION_RATIO = 2e-5
"""What a token of context costs a new prompt token, as a fraction of the new token's own cost, before it was measured.

By arithmetic: attention takes 4 · hidden size · layers operations for each pair of tokens, all else 2 · parameters for
each token, which is 1.9e-5 for Llama 70B and 3.3e-5 for 8B."""

_PRIOR_PAIRS = 4.0 * (8192 * 16384) ** 2
"""How much the prior counts: as much as four steps of 8,192 tokens that attend to 16,384 each."""


class StepMeter:
    """Moving averages over steps; speeds are 0 until something was measured."""

    def __init__(self) -> None:
        self.step_time_ms = 0.0
        """Time of a step that only decodes."""
        self.attention_ratio = PRIOR_ATTENTION_RATIO
        """What a token of context costs each new prompt token, as a fraction of the new token's own cost."""
        self._prefill_steps = 0.0
        self._prefill_tokens = 0.0
        self._prefill_ms = 0.0
        self._pairs = 0.0
        self._pairs_squared = 0.0
        self._pairs_excess = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens without context over the time by which their steps were longer than a decoding step.

        Against the whole time of the step a short prompt would look slow, and a long one would be believed to be.
        """
        if not self.step_time_ms and self._prefill_tokens < ALONE_TOKENS * self._prefill_steps:
            least = 1000 * self._prefill_tokens / self._prefill_ms if self._prefill_ms else 0.0
            return least if least > ASSUMED_TOKENS_PER_S else 0.0
        extra_ms = self._prefill_ms - self._prefill_steps * self.step_time_ms
        tokens = self._prefill_tokens + self._pairs * self.attention_ratio
        return 1000 * tokens / extra_ms if extra_ms > 0 else 0.0

    def observe(self, prefill_tokens: int, decode_tokens: int, duration_ms: float, pairs: float = 0.0) -> None:
        """A step with so many new prompt tokens and so many decoding sequences took so long.

        `pairs` are the tokens that each new prompt token attended to, over all of them; 0 where nobody knows.
        """
        if prefill_tokens:
            if prefill_tokens < MIN_PREFILL_TOKENS and self._prefill_tokens:
                return
            self._prefill_steps = self._prefill_steps * _KEEP + 1
            self._prefill_tokens = self._prefill_tokens * _KEEP + prefill_tokens
            self._prefill_ms = self._prefill_ms * _KEEP + duration_ms
            self._pairs = self._pairs * _KEEP + pairs
            if pairs:
                self._learn_ratio(prefill_tokens, duration_ms, pairs)
        elif decode_tokens:
            average_ms = self.step_time_ms
            self.step_time_ms = average_ms * _KEEP + duration_ms * (1 - _KEEP) if average_ms else duration_ms

    def _learn_ratio(self, prefill_tokens: int, duration_ms: float, pairs: float) -> None:
        """By least squares: what of the step, in tokens of the present speed, its tokens do not account for."""
        excess = (duration_ms - self.step_time_ms) * self.prefill_tokens_per_s / 1000 - prefill_tokens
        self._pairs_squared = self._pairs_squared * _KEEP_RATIO + pairs * pairs
        self._pairs_excess = self._pairs_excess * _KEEP_RATIO + pairs * excess
        ratio = (PRIOR_ATTENTION_RATIO * _PRIOR_PAIRS + self._pairs_excess) / (_PRIOR_PAIRS + self._pairs_squared)
        self.attention_ratio = max(0.0, ratio)
