"""How long a step of an engine lasts. Pure arithmetic, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

SEQUENCE_RATIO = 0.01
"""How much one more decoding sequence prolongs a step, as a fraction of the step of a single one.

Measured for a 70B model on eight H100: 29.8, 34.2, 38.6 and 50.2 ms for 1, 16, 32 and 64 sequences; the line gives
29.8, 34.3, 39.0 and 48.6."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step's length, as a sum over what it computes.

    `base_ms` is what any step costs: weights are read once, kernels launched once. `sequence_ms` and `context_ms` are
    what each decoding sequence beyond the first, and each token of context that decoding reads, add. `token_ms` is
    computing, which follows the sum of new prompt tokens; `pair_ms` is attention: for each new token and each token
    that it attends to.
    """

    base_ms: float
    token_ms: float
    sequence_ms: float = 0.0
    pair_ms: float = 0.0
    context_ms: float = 0.0

    def of(self, prefill_tokens: int, pairs: float, sequences: int, context_tokens: int) -> float:
        """Milliseconds of a step with so many new prompt tokens and pairs of attention, beside so many decoding
        sequences that attend to so many tokens in all."""
        duration_ms = self.base_ms + prefill_tokens * self.token_ms + pairs * self.pair_ms
        if sequences:
            duration_ms += (sequences - 1) * self.sequence_ms + context_tokens * self.context_ms
        return duration_ms

    def slowed(self, factor: float) -> StepTime:
        """The same engine, so many times slower."""
        return StepTime(
            self.base_ms * factor,
            self.token_ms * factor,
            self.sequence_ms * factor,
            self.pair_ms * factor,
            self.context_ms * factor,
        )


def plain_step_time(step_ms: float, prefill_tokens_per_s: float) -> StepTime:
    """An engine known by these two numbers alone."""
    return StepTime(step_ms, 1000.0 / prefill_tokens_per_s, step_ms * SEQUENCE_RATIO)


LLAMA_70B_H100 = StepTime(base_ms=29.8, token_ms=0.095, sequence_ms=0.32, pair_ms=1.4e-6, context_ms=2e-5)
"""Llama-2-70B on eight H100, from the measurements published with Splitwise (ISCA 2024; MIT licence).

Prompts of 512 tokens, 8 and 16 at once, took 372 and 812 ms; a single one of 8,192 took 845: 0.095 ms a token, and
what is left agrees with attention's share of the model's arithmetic, 2.6 of 140,000 MFLOP for each token attended to.
Decoding took 29.8, 34.2, 38.6 and 50.2 ms with 1, 16, 32 and 64 sequences. Context is read from memory: 320 KB for
each token at 60 % of 27 TB/s, less what the first measurements' 512 tokens hold already.
"""
